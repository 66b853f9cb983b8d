"""Datasets in COCO format: ROOT/annotations/instances_SPLIT.json and ROOT/SPLIT/file_name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rpn_jax.data.coco_file import read_coco
from rpn_jax.data.dataset import Picture
from rpn_jax.data.images import check_size, read_image
from rpn_jax.errors import UserError, reading

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

PREFIX = "instances_"


class CocoFolder:
    """A split of a COCO-format folder, checked when opened (a `Dataset`).

    Args:
      root: folder with ``annotations/`` and a folder of pictures for each split.
      split: for example 'train2017'.
      clip_boxes: see `assign_objects`.

    Raises:
      UserError: a folder, file or picture is missing, or an annotation is broken.
    """

    def __init__(self, root: Path, split: str, clip_boxes: bool) -> None:
        self._file = _annotation_file(root, split)
        self._folder = root / split
        truth = read_coco(self._file, clip_boxes)
        self.pictures: Sequence[Picture] = truth.pictures
        self.class_names = truth.class_names
        self.category_ids = truth.category_ids
        _check_files_exist(self._folder, self.pictures, self._file)

    def load_image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return RGB pixels. Raises UserError if the file is not a picture or has another size."""
        picture = self.pictures[index]
        image = read_image(self._folder / picture.name)
        check_size(image, picture, str(self._file))
        return image


def _annotation_file(root: Path, split: str) -> Path:
    with reading(f"data.root = {str(root)!r}"):
        is_folder = root.is_dir()
    if not is_folder:
        raise UserError(f"data.root = {str(root)!r}: no such folder")
    file = root / "annotations" / f"{PREFIX}{split}.json"
    files = [path for path in _entries(file.parent) if path.match(f"{PREFIX}*.json")]
    known = sorted(path.stem.removeprefix(PREFIX) for path in files)
    if split not in known:
        raise UserError(
            f"split '{split}': there is no {file}. Splits there: {', '.join(known) or 'none'}"
        )
    if not (root / split).is_dir():
        raise UserError(f"split '{split}': there is no folder {root / split} with its pictures")
    return file


def _check_files_exist(folder: Path, pictures: Sequence[Picture], file: Path) -> None:
    # List each folder once: asking for each of 100,000 files is slow on a network drive.
    names = [os.path.split(picture.name) for picture in pictures]
    # Outer folders come first, so that the message names the outermost one that is unreadable.
    folders = {head: folder / head for head in {head for head, _ in names}}
    present = {
        head: {path.name for path in _entries(parent)}
        for head, parent in sorted(folders.items(), key=lambda item: item[1])
    }
    missing = [
        picture.name
        for picture, (head, tail) in zip(pictures, names, strict=True)
        if tail not in present[head]
    ]
    if missing:
        raise UserError(
            f"{folder / missing[0]}: no such picture, but {file} names it "
            f"({len(missing)} of {len(names)} pictures are missing)"
        )


def _entries(folder: Path) -> list[Path]:
    """List a folder, or nothing if there is none. `Path.glob` would hide an unreadable folder."""
    with reading(folder):
        try:
            return list(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
