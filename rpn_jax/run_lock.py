"""One run at a time in a work directory."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rpn_jax.errors import UserError
from rpn_jax.output import make_folder

LOCK_FILE = "run.lock"


@contextmanager
def only_run(workdir: Path) -> Iterator[None]:
    """Keep other runs out of a work directory, which is made; the lock ends with the process.

    Raises:
      UserError: another run is in it, or it cannot be written or locked.
    """
    make_folder(workdir)
    path = workdir / LOCK_FILE
    with _opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"work directory {workdir}: another run is training in it; wait for its end, or "
                "choose another --workdir"
            ) from None
        except OSError as error:
            raise UserError(
                f"{path}: cannot be locked ({error.strerror}); choose a --workdir on another disk"
            ) from None
        yield


def _opened(path: Path) -> TextIO:
    try:
        return open(path, "w")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
