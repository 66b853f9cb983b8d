"""A lock file that allows only one run at a time in a work directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rpn_jax.errors import UserError, writing
from rpn_jax.files import make_folder

LOCK_FILE = "run.lock"


@contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Create a work directory and lock it for the block.

    The system releases the lock when the process ends, also when it is killed.

    Raises:
      UserError: another run holds the lock, or the directory cannot be written or locked.
    """
    make_folder(workdir)
    lock = FileLock(workdir / LOCK_FILE)
    with writing(lock.lock_file, "Choose another --workdir."):
        try:
            held = lock.acquire(blocking=False)
        except Timeout:
            raise UserError(
                f"--workdir {workdir}: another run is training in it. Wait until it ends, or "
                "choose another --workdir."
            ) from None
    with held:
        yield
