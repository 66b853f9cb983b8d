"""Pictures without ground truth: files, and arrays in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.data.dataset import Picture
from rpn_jax.data.images import check_size, decode_image, image_size
from rpn_jax.errors import UserError, reading
from rpn_jax.files import read_file

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from rpn_jax.data.bad_pictures import BadPictures

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Suffixes of pictures in a folder. A file that is named directly may have any suffix."""


class PictureFiles:
    """Pictures in the given order, with ids from 1 and no objects (a `Dataset`).

    Args:
      items: picture files, or uint8 RGB arrays.
      names: names of files that are not shown by their path, for example URLs.
      on_pictures: called with 1 after the header of each picture is read.
      bad: says what to do about a file whose header cannot be read. If it is skipped, it is left
        out, and the other pictures keep their ids. None: it is an error.

    Raises:
      UserError: a file is missing or is not a picture, or an array has another shape or type.
    """

    def __init__(
        self,
        items: Sequence[Path | np.ndarray],
        names: Mapping[Path, str] | None = None,
        on_pictures: Callable[[int], None] = lambda count: None,
        bad: BadPictures | None = None,
    ) -> None:
        # A text needs a third of the memory of a Path, which counts for millions of pictures.
        self._items: list[str | np.ndarray] = []
        pictures = []
        for number, item in enumerate(items, start=1):
            read = partial(_picture_of, item, number, names or {})
            is_file = isinstance(item, Path)
            picture = bad.attempt(number, read) if bad and is_file else read()
            if picture is not None:
                pictures.append(picture)
                self._items.append(str(item) if isinstance(item, Path) else item)
            on_pictures(1)
        self.pictures: Sequence[Picture] = pictures
        self.class_names: tuple[str, ...] = ()
        self.category_ids: tuple[int, ...] = ()

    def load_image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return RGB pixels. Raises UserError if the file cannot be decoded."""
        item = self._items[index]
        if not isinstance(item, str):
            return item
        picture = self.pictures[index]
        image = decode_image(read_file(Path(item)), picture.name)
        check_size(image, picture, "its header")
        return image


def find_pictures(patterns: Sequence[str]) -> list[Path]:
    """Return the picture files that match paths, folders or globs, each once.

    The folders inside a folder are not searched. Its hidden files, such as the '._a.jpg' that macOS
    writes, are left out.

    Raises:
      UserError: a pattern matches nothing, or a folder cannot be read.
    """
    return list(dict.fromkeys(path for pattern in patterns for path in _expand(pattern)))


def _picture_of(item: Path | np.ndarray, number: int, names: Mapping[Path, str]) -> Picture:
    if isinstance(item, Path):
        name = names.get(item, str(item))
        height, width = image_size(item, name)
    else:
        name, (height, width) = f"array {number}", _array_size(item, number)
    return Picture(number, name, height, width)


def _array_size(array: np.ndarray, number: int) -> tuple[int, int]:
    if not isinstance(array, np.ndarray):
        raise UserError(
            f"picture {number} is of type {type(array).__name__}: must be a path, or a NumPy array "
            "of RGB pixels, uint8[height, width, 3]"
        )
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise UserError(
            f"picture {number} is an array of {array.dtype}{list(array.shape)}: must be RGB "
            "pixels, uint8[height, width, 3]"
        )
    height, width, _ = array.shape
    return height, width


def _expand(pattern: str) -> list[Path]:
    with reading(pattern):
        # A file name may contain glob characters. `Path.glob` does not accept absolute patterns.
        matches = [pattern] if Path(pattern).exists() else sorted(glob(pattern))  # noqa: PTH207
        found = [file for match in matches for file in _files_of(Path(match))]
    if not found:
        kind = "no picture in this folder" if Path(pattern).is_dir() else "no such picture"
        raise UserError(f"{pattern}: {kind} ({', '.join(sorted(SUFFIXES))})")
    return found


def _files_of(path: Path) -> Iterator[Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        yield from (file for file in files if file.suffix.lower() in SUFFIXES)
    else:
        yield path
