"""Read and write JSON, write files atomically, check output paths, and find the cache folder."""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rpn_jax.errors import UserError, reading, writing

NESTED_TOO_DEEPLY = "its JSON is nested too deeply. Write it with fewer levels."
"""What is wrong with a file on which a JSON parser raises RecursionError."""


def read_file(path: Path) -> bytes:
    """Read a regular file, or a link to one.

    A pipe would wait for a writer for ever, and a device such as /dev/zero has no end.

    Raises:
      UserError: the file cannot be read or is not a regular file.
    """
    check_regular_file(path)
    with reading(path):
        return path.read_bytes()


def read_text(path: Path) -> str:
    """Read a regular file of UTF-8 text.

    Raises:
      UserError: the file cannot be read, is not a regular file, or is not UTF-8.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error}). Save it as UTF-8.") from None
    if "\0" in text:
        raise UserError(f"{path}: is not UTF-8 text (it has null bytes). Save it as UTF-8.")
    return text


def check_regular_file(path: Path) -> None:
    """Raise UserError if the path does not exist, or is a pipe, a device or a folder."""
    with reading(path):
        mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise UserError(f"{path}: is {kind}. It must be a file.")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
      UserError: the file cannot be read or is not JSON.
    """
    content = read_file(path)
    try:
        return json.loads(content)
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from None
    except RecursionError:
        raise UserError(f"{path}: {NESTED_TOO_DEEPLY}") from None


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON. A failure leaves the previous file.

    Raises:
      UserError: the path cannot be written.
    """
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def json_figures(figures: dict[str, float]) -> dict[str, float | None]:
    """Replace NaN by None, because JSON has no NaN. A recall without ground truth is NaN."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def make_folder(folder: Path) -> None:
    """Create a folder and check that files can be created in it.

    Call it before long work, whose results would be lost.

    Raises:
      UserError: the folder cannot be written.
    """
    with writing(f"folder {folder}", "Choose another folder."):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def check_out_file(path: Path) -> None:
    """Create the folder of an output file and check that the file can be written.

    Call it before long work, whose results would be lost.

    Raises:
      UserError: the file cannot be written, or the path is a folder, a pipe or a device.
    """
    target = _link_target(path)
    make_folder(target.parent)
    _check_replaceable(path, target)


def _link_target(path: Path) -> Path:
    """Return where a link leads, or the path itself if it is no link."""
    # `Path.is_symlink` raises an OSError for a name that is too long.
    return Path(os.path.realpath(path)) if os.path.islink(path) else path  # noqa: PTH114


def _check_replaceable(path: Path, target: Path) -> None:
    """Raise UserError if the path exists but leads to something else than a regular file.

    Writing renames a new file to it. That would remove a pipe, or a device such as /dev/null.
    """
    with writing(path):
        try:
            mode = target.stat().st_mode
        except FileNotFoundError:
            return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise UserError(f"{path}: is {kind}. Choose the path of a file.")


def cache_folder() -> Path:
    """Return the folder of downloads and compiled programs. It is not created here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rpn_jax"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. It is renamed to ``path`` if the block succeeds.

    If ``path`` is a link, the link stays and the file that it leads to is replaced.

    Raises:
      UserError: the path cannot be written, or is a folder, a pipe or a device.
    """
    target = _link_target(path)
    _check_replaceable(path, target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            yield temporary
            temporary.replace(target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
