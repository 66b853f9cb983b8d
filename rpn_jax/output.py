"""Where commands write: the console, folders that can be written, whole files, the cache."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rpn_jax.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


def make_console() -> Console:
    """A console that prints paths as they are: no markup, no emoji, no colours of its own."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)


def make_folder(folder: Path) -> None:
    """Make a folder, and make sure before long work that it can be written.

    Raises:
      UserError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"folder {folder}: cannot be written ({error.strerror}); choose another one"
        ) from None


def check_out_file(path: Path) -> None:
    """Make a file's folder, and make sure before long work that the file can be written.

    Raises:
      UserError: it cannot, or is a folder.
    """
    make_folder(path.parent)
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    if is_folder:
        raise UserError(f"{path}: is a folder, where a file is to be written; name a file")


def cache_folder() -> Path:
    """Where downloads and compiled programs are kept between runs; not made here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rpn_jax"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the name ``path`` once the block has ended well.

    Raises:
      UserError: the path cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
