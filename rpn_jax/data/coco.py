"""Datasets in COCO format, and the folder layouts in which they are found."""

from __future__ import annotations

from pathlib import Path

from rpn_jax.data.annotated_files import AnnotatedFiles, check_files, folder_entries
from rpn_jax.data.coco_file import GroundTruth, read_coco
from rpn_jax.errors import UserError, reading

ANNOTATION_FILES = (
    "annotations/instances_{split}.json",
    "annotations/{split}.json",
    "{split}/_annotations.coco.json",
    "{split}.json",
)
"""Where the annotations of a split may lie, below the root. The third is Roboflow's export."""
PICTURE_FOLDERS = ("{split}", "images/{split}", "images", "")
"""Where the pictures of a split may lie, below the root."""
PROBED_PICTURES = 20
"""Number of pictures that are looked for in each possible folder."""


def open_coco(root: Path, split: str, clip_boxes: bool) -> AnnotatedFiles:
    """Open a split of a folder with COCO annotations.

    The annotations lie in the first of `ANNOTATION_FILES` that exists, and the pictures in the
    first of `PICTURE_FOLDERS` that has one of them.

    Args:
      root: folder of the dataset.
      split: for example 'train2017'.
      clip_boxes: see `assign_objects`.

    Raises:
      UserError: a folder, file or picture is missing, or an annotation is broken.
    """
    file = annotation_file(root, split)
    truth = read_coco(file, clip_boxes)
    return _with_pictures(file, _picture_folder(root, split, truth), truth)


def open_coco_file(file: Path, folder: Path, clip_boxes: bool) -> AnnotatedFiles:
    """Open a COCO file whose pictures lie in ``folder``.

    Raises:
      UserError: the file, the folder or a picture is missing, or an annotation is broken.
    """
    with reading(folder):
        is_folder = folder.is_dir()
    if not is_folder:
        raise UserError(f"{folder}: no such folder of pictures")
    return _with_pictures(file, folder, read_coco(file, clip_boxes))


def _with_pictures(file: Path, folder: Path, truth: GroundTruth) -> AnnotatedFiles:
    check_files(folder, truth.pictures, str(file))
    return AnnotatedFiles(
        truth.pictures,
        truth.class_names,
        truth.category_ids,
        folder,
        source=str(file),
        frequencies=truth.frequencies,
    )


def annotation_file(root: Path, split: str) -> Path:
    """Return the first of `ANNOTATION_FILES` that exists. Raises UserError if there is none."""
    with reading(f"data.root = {str(root)!r}"):
        is_folder = root.is_dir()
    if not is_folder:
        raise UserError(f"data.root = {str(root)!r}: no such folder. Choose one with --data.root")
    files = [root / pattern.format(split=split) for pattern in ANNOTATION_FILES]
    listed = {folder: set(folder_entries(folder)) for folder in {file.parent for file in files}}
    for file in files:
        if file in listed[file.parent]:
            return file
    raise UserError(
        f"split '{split}': there is no {files[0]}. Splits there: {_known_splits(root)}. "
        f"{_other_format(root)}"
    )


def _known_splits(root: Path) -> str:
    """Return the names of the splits that `ANNOTATION_FILES` finds below the root."""
    splits = set()
    for pattern in ANNOTATION_FILES:
        before, _, after = str(root / pattern).partition("{split}")
        paths = root.glob(pattern.format(split="*"))
        splits |= {str(path).removeprefix(before).removesuffix(after) for path in paths}
    # The second pattern matches the files of the first one, too.
    names = {split for split in splits if not split.startswith("instances_")}
    return ", ".join(sorted(names)) or "none"


def _other_format(root: Path) -> str:
    """Return what to do about a folder without COCO annotations."""
    names = {path.name for path in folder_entries(root)}
    if "data.yaml" in names:
        return "The folder has a data.yaml. Read it with --data.dataset yolo"
    if "Annotations" in names or any(root.glob("*/*.xml")):
        return "The folder has XML files. Read them as Pascal VOC with --data.dataset voc"
    return (
        "In another layout, name the file with --data.train-annotations (--data.eval-annotations) "
        "and the folder of its pictures with --data.train-images (--data.eval-images)"
    )


def _picture_folder(root: Path, split: str, truth: GroundTruth) -> Path:
    folders = [root / pattern.format(split=split) for pattern in PICTURE_FOLDERS]
    names = [picture.name for picture in truth.pictures[:PROBED_PICTURES]]
    for folder in folders:
        with reading(folder):
            if any((folder / name).exists() for name in names):
                return folder
    # None of these pictures exists. The later check names the first one that is missing.
    if folders[0].is_dir() or not names:
        return folders[0]
    raise UserError(
        f"split '{split}': there is no folder {folders[0]} with its pictures. Name their folder "
        "with --data.train-images (--data.eval-images), and the annotations with "
        "--data.train-annotations (--data.eval-annotations)"
    )
