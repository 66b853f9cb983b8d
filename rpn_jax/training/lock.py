"""One run at a time in a work directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rpn_jax.errors import UserError, writing
from rpn_jax.files import make_folder

LOCK_FILE = "run.lock"


@contextmanager
def only_run(workdir: Path) -> Iterator[None]:
    """Keep other runs out of a work directory, which is made; the lock ends with the process.

    Raises:
      UserError: another run is in it, or it cannot be written or locked.
    """
    make_folder(workdir)
    lock = FileLock(workdir / LOCK_FILE)
    with writing(lock.lock_file, "Choose another --workdir."):
        try:
            held = lock.acquire(blocking=False)
        except Timeout:
            raise UserError(
                f"work directory {workdir}: another run is training in it; wait for its end, or "
                "choose another --workdir"
            ) from None
    with held:
        yield
