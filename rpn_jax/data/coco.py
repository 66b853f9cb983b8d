"""Datasets in COCO format: ROOT/annotations/instances_SPLIT.json and ROOT/SPLIT/file_name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpn_jax.data.annotations import pictures_from_coco
from rpn_jax.data.dataset import Picture
from rpn_jax.data.images import check_size, read_image
from rpn_jax.errors import UserError, reading
from rpn_jax.files import read_json

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

PREFIX = "instances_"


class CocoFolder:
    """A split of a COCO-format folder, checked when opened (a `Dataset`).

    Args:
      root: folder with ``annotations/`` and a folder of pictures for each split.
      split: for example 'train2017'.
      clip_boxes: see `pictures_from_coco`.

    Raises:
      UserError: a folder, file or picture that is missing, or a broken annotation.
    """

    def __init__(self, root: Path, split: str, clip_boxes: bool) -> None:
        self._file = _annotation_file(root, split)
        self._folder = root / split
        self.annotations: dict[str, Any] = _read_annotations(self._file)
        self.pictures: Sequence[Picture] = pictures_from_coco(
            self.annotations, str(self._file), clip_boxes
        )
        _check_files_exist(self._folder, self.pictures, self._file)

    def load_image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """RGB pixels. Raises UserError for a file that is no picture or has another size."""
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
            f"split '{split}': there is no {file}; splits there: {', '.join(known) or 'none'}"
        )
    if not (root / split).is_dir():
        raise UserError(f"split '{split}': there is no folder {root / split} with its pictures")
    return file


def _read_annotations(file: Path) -> dict[str, Any]:
    coco = read_json(file)
    for key in ("images", "annotations"):
        if not isinstance(coco, dict) or not isinstance(coco.get(key), list):
            raise UserError(f"{file}: is no COCO file, it has no list '{key}'")
    coco.setdefault("categories", [])
    for annotation in coco["annotations"]:
        if isinstance(annotation, dict):
            annotation.pop("segmentation", None)  # COCO's outlines take gigabytes, and no part here
    return coco


def _check_files_exist(folder: Path, pictures: Sequence[Picture], file: Path) -> None:
    """One scan a folder: asking for each of 100,000 files is slow on a network drive."""
    paths = [folder / picture.name for picture in pictures]
    folders = sorted({path.parent for path in paths})  # outer ones first, for the same message
    there = {path for parent in folders for path in _entries(parent)}
    missing = [path for path in paths if path not in there]
    if missing:
        raise UserError(
            f"{missing[0]}: no such picture, but {file} names it "
            f"({len(missing)} of {len(paths)} pictures are missing)"
        )


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, nothing if there is none; `Path.glob` hides that one is unreadable."""
    with reading(folder):
        try:
            return list(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
