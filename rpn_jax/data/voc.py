"""Datasets in the format of Pascal VOC: one XML file of annotations for each picture.

VOC counts pixels from 1. As in the reference, 1 is subtracted from all four sides of a box.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from rpn_jax.data.annotated_files import AnnotatedFiles, check_files, folder_entries
from rpn_jax.data.annotations import assign_objects
from rpn_jax.data.dataset import Objects, Picture
from rpn_jax.data.files import SUFFIXES
from rpn_jax.data.images import MAX_SIDE, image_size
from rpn_jax.errors import UserError
from rpn_jax.files import read_file, read_text

SIDES = ("xmin", "ymin", "xmax", "ymax")
WITH_FLAG = re.compile(r"(.*\S)\s+(-1|0|1)")
"""A line of the list of one class: a stem, and whether the class is in the picture."""


def open_voc(root: Path, split: str, clip_boxes: bool) -> AnnotatedFiles:
    """Open a split of a folder with Pascal VOC annotations.

    Two layouts are read. VOC's own has ``Annotations/ID.xml``, ``JPEGImages/ID.jpg`` and the list
    of a split's ids in ``ImageSets/Main/SPLIT.txt``. The other has each picture and its XML file in
    the folder ``SPLIT``. The classes are all names in the XML files below the root, in alphabetical
    order. This is the order of the reference for the 20 classes of VOC.

    Args:
      root: folder of the dataset, for example 'VOCdevkit/VOC2007'.
      split: for example 'trainval'.
      clip_boxes: see `assign_objects`.

    Raises:
      UserError: a folder, file or picture is missing, or an annotation is broken.
    """
    annotations, pictures_folder, stems = _find_split(root, split)
    class_names = _all_class_names(annotations, root, stems)
    label_of = {name: label for label, name in enumerate(class_names)}
    names = _picture_names(pictures_folder, stems)
    pictures, rows = [], []
    for number, stem in enumerate(stems, start=1):
        file = annotations / f"{stem}.xml"
        top = _parse(file)
        name = names.get(stem, f"{stem}.jpg")
        height, width = _size(top, pictures_folder / name)
        pictures.append(Picture(number, name, height, width))
        for each in top.iterfind("object"):
            label = label_of[_text(each, "name", file)]
            rows.append((number - 1, label, _is_difficult(each, file), *_box(each, file)))
    check_files(pictures_folder, pictures, str(annotations))
    table = np.array(rows, np.float64).reshape(-1, 7)
    objects = _objects(table)
    owner = table[:, 0].astype(np.int64)
    pictures = assign_objects(pictures, objects, owner, str(annotations), clip_boxes)
    ids = tuple(range(1, len(class_names) + 1))
    return AnnotatedFiles(pictures, class_names, ids, pictures_folder, source=str(annotations))


def annotation_errors(root: Path, split: str) -> Iterator[str]:
    """Yield the error of each XML file of a split that cannot be used, without pictures' sizes.

    Raises UserError if there is no such split.
    """
    annotations, _, stems = _find_split(root, split)
    for stem in stems:
        file = annotations / f"{stem}.xml"
        try:
            for each in _parse(file).iterfind("object"):
                _text(each, "name", file)
                _is_difficult(each, file)
                _box(each, file)
        except UserError as error:
            yield str(error)


def _find_split(root: Path, split: str) -> tuple[Path, Path, list[str]]:
    """Return the folders of the XML files and of the pictures, and the stems of a split's files."""
    lists = root / "ImageSets" / "Main"
    if (lists / f"{split}.txt").exists():
        annotations = root / "Annotations"
        lines = read_text(lists / f"{split}.txt").splitlines()
        stems = _listed_stems(lines, {path.stem for path in folder_entries(annotations)})
        return annotations, root / "JPEGImages", stems
    stems = sorted(path.stem for path in folder_entries(root / split) if _is_xml(path))
    if stems:
        return root / split, root / split, stems
    known = sorted(path.stem for path in folder_entries(lists))
    known += sorted({path.parent.name for path in root.glob("*/*.xml")} - {"Annotations"})
    raise UserError(
        f"split '{split}': there is no {lists / split}.txt and no XML file in {root / split}. "
        f"Splits there: {', '.join(known) or 'none, so another --data.dataset may fit'}"
    )


def _listed_stems(lines: list[str], known: set[str]) -> list[str]:
    """Return the stem on each line. A stem may contain spaces, and a flag may follow it."""
    stems = []
    for line in filter(None, map(str.strip, lines)):
        with_flag = WITH_FLAG.fullmatch(line)
        stems.append(with_flag[1] if with_flag and line not in known else line)
    return stems


def _is_xml(path: Path) -> bool:
    """Return whether a file holds annotations. macOS writes hidden files such as '._a.xml'."""
    return path.suffix.lower() == ".xml" and not path.name.startswith(".")


def _all_class_names(annotations: Path, root: Path, stems: list[str]) -> tuple[str, ...]:
    """Return the names of all splits, so that each split numbers the classes in the same way.

    The files of the split may lie in sub-folders, which are not searched.
    """
    folders = [annotations] if annotations.name == "Annotations" else folder_entries(root)
    found = [file for folder in folders for file in folder_entries(folder)]
    files = {file for file in found if _is_xml(file)}
    files |= {annotations / f"{stem}.xml" for stem in stems}
    objects = ((each, file) for file in sorted(files) for each in _parse(file).iterfind("object"))
    return tuple(sorted({_text(each, "name", file) for each, file in objects}))


def _parse(file: Path) -> ElementTree.Element:
    content = read_file(file)
    try:
        top = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise UserError(f"{file}: is not XML ({error})") from None
    except (ValueError, LookupError) as error:  # expat reads few encodings, for example not GBK
        raise UserError(f"{file}: cannot be read ({error}). Save it as UTF-8.") from None
    if top.tag != "annotation":
        raise UserError(f"{file}: its top element is <{top.tag}>, must be <annotation>")
    return top


def _picture_names(folder: Path, stems: list[str]) -> dict[str, str]:
    """Return the file name of each stem. VOC's pictures end with .jpg, those of others may not."""
    wanted = set(stems)
    folders = {(folder / stem).parent for stem in stems}
    files = sorted(file for each in folders for file in folder_entries(each))
    names = [file.relative_to(folder) for file in files if file.suffix.lower() in SUFFIXES]
    stem_of = {name.as_posix(): name.with_suffix("").as_posix() for name in names}
    return {stem: name for name, stem in stem_of.items() if stem in wanted}


def _size(top: ElementTree.Element, picture: Path) -> tuple[int, int]:
    """Return (height, width), from the picture's header if the XML file has no valid size."""
    height, width = (_number(top.findtext(f"size/{side}")) for side in ("height", "width"))
    if 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE:
        return int(height), int(width)
    return image_size(picture, str(picture))


def _box(entry: ElementTree.Element, file: Path) -> tuple[float, float, float, float]:
    """Return (x, y, width, height) in pixels from 0."""
    sides = [_number(entry.findtext(f"bndbox/{side}")) for side in SIDES]
    x1, y1, x2, y2 = (np.trunc(side) - 1 for side in sides)
    if not ((np.abs(sides) <= MAX_SIDE).all() and x2 >= x1 and y2 >= y1):
        found = {side: entry.findtext(f"bndbox/{side}") for side in SIDES}
        raise UserError(
            f"{file}: object '{entry.findtext('name')}': 'bndbox' is {found}, must have numbers "
            "xmin, ymin, xmax and ymax, with xmin <= xmax and ymin <= ymax"
        )
    return x1, y1, x2 - x1, y2 - y1


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _is_difficult(entry: ElementTree.Element, file: Path) -> bool:
    text = (entry.findtext("difficult") or "").strip() or "0"
    if text not in ("0", "1"):
        raise UserError(
            f"{file}: object '{entry.findtext('name')}': 'difficult' is '{text}', must be 0 or 1"
        )
    return text == "1"


def _text(entry: ElementTree.Element, key: str, file: Path) -> str:
    text = (entry.findtext(key) or "").strip()
    if not text:
        raise UserError(f"{file}: an object has no '{key}'. Every object needs one")
    return text


def _objects(table: np.ndarray) -> Objects:
    """Return the objects of rows (picture, label, difficult, x, y, width, height)."""
    return Objects(
        boxes_xywh=table[:, 3:],
        labels=table[:, 1].astype(np.int32),
        is_crowd=np.zeros(len(table), bool),
        is_difficult=table[:, 2] > 0,
        areas=table[:, 5:].prod(axis=1),
        ids=np.arange(1, len(table) + 1),
    )
