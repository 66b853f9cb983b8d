"""Files that commands read and write: JSON, whole files, output folders, the cache folder."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rpn_jax.errors import UserError, reading, writing


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
      UserError: it cannot be read, or is not JSON.
    """
    with reading(path):
        content = path.read_bytes()
    try:
        return json.loads(content)
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from None


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON; the file appears whole or not at all.

    Raises:
      UserError: the path cannot be written.
    """
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def json_figures(figures: dict[str, float]) -> dict[str, float | None]:
    """The figures for JSON, which has no NaN (a recall without any box to find): None for it."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def make_folder(folder: Path) -> None:
    """Make a folder, and make sure before long work that it can be written.

    Raises:
      UserError: it cannot.
    """
    with writing(f"folder {folder}", "Choose another folder."):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def check_out_file(path: Path) -> None:
    """Make a file's folder, and make sure before long work that the file can be written.

    Raises:
      UserError: it cannot, or is a folder.
    """
    make_folder(path.parent)
    with writing(path):
        is_folder = path.is_dir()
    if is_folder:
        raise UserError(f"{path}: is a folder. Choose the path of a file.")


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
        with writing(path):
            yield temporary
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
