"""Datasets in the format of YOLO: a data.yaml, and a text file of labels for each picture.

A line of a text file is ``class centre_x centre_y width height``. For an outline it is
``class x1 y1 x2 y2 x3 y3 ...``. The numbers are fractions of the picture's width and height.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from rpn_jax.data.annotated_files import AnnotatedFiles, check_files
from rpn_jax.data.annotations import assign_objects
from rpn_jax.data.dataset import Objects, Picture
from rpn_jax.data.files import SUFFIXES
from rpn_jax.data.images import image_size
from rpn_jax.errors import UserError, reading
from rpn_jax.files import read_text

if TYPE_CHECKING:
    from jaxtyping import Float64

DATA_FILE = "data.yaml"
THREADS = 8
"""Number of threads that read the headers of pictures."""
ROUNDING = 0.001
"""Amount by which a fraction in a label may be below 0 or above 1."""


def open_yolo(root: Path, split: str, clip_boxes: bool) -> AnnotatedFiles:
    """Open a split of a YOLO dataset.

    The split names a folder, a list of folders or a text file of paths in data.yaml, relative to
    its 'path'. Links to folders are followed, and a picture that is listed twice is read once. The
    labels of ``images/.../a.jpg`` lie in ``labels/.../a.txt``, those of other pictures next to
    them. A picture without a text file has no objects.

    Args:
      root: folder with a data.yaml, or the path of such a file.
      split: a key of data.yaml: 'train', 'val' or 'test'.
      clip_boxes: see `assign_objects`.

    Raises:
      UserError: a folder, file or picture is missing, or a label is broken.
    """
    file = root if root.suffix in (".yaml", ".yml") else root / DATA_FILE
    with reading(file):
        exists = file.exists()
    if not exists:
        raise UserError(
            f"{file}: no such file. Choose the folder of a data.yaml, or its path, with "
            "--data.root, or another format with --data.dataset"
        )
    content = _read_yaml(file)
    class_names = _class_names(content, file)
    paths = _find_pictures(content, split, file)
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    with ThreadPoolExecutor(THREADS) as threads:
        sizes = list(threads.map(lambda path: image_size(path, str(path)), paths))
    pictures = [
        Picture(number, path.relative_to(folder).as_posix(), height, width)
        for number, (path, (height, width)) in enumerate(zip(paths, sizes, strict=True), start=1)
    ]
    check_files(folder, pictures, str(file))
    labels, boxes, owner = [], [], []
    for position, path in enumerate(paths):
        found = _read_labels(_label_file(path), len(class_names))
        labels += [label for label, _ in found]
        boxes += [box for _, box in found]
        owner += [position] * len(found)
    owners = np.array(owner, np.int64)
    sizes_wh = np.array(sizes).reshape(-1, 2)[:, ::-1]
    boxes_xywh = np.array(boxes, np.float64).reshape(-1, 4) * np.tile(sizes_wh[owners], 2)
    objects = _objects(boxes_xywh, labels)
    pictures = assign_objects(pictures, objects, owners, str(file), clip_boxes)
    ids = tuple(range(1, len(class_names) + 1))
    return AnnotatedFiles(pictures, class_names, ids, folder, source=str(file))


def _read_yaml(file: Path) -> dict[str, Any]:
    text = read_text(file)
    try:
        content = yaml.safe_load(text)
    # ValueError: a date such as 2024-13-45
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: must have the keys 'train', 'val' and 'names'")
    return content


def _class_names(content: dict[str, Any], file: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(
            f"{file}: 'names' is {names!r}, must be a list of class names, or a map of the numbers "
            "from 0 to class names"
        )
    texts = tuple(map(str, names))
    for number, name in enumerate(texts):
        if texts.index(name) < number:
            raise UserError(
                f"{file}: 'names' has {name!r} as class {texts.index(name)} and as class {number}. "
                "Names must differ"
            )
    return texts


def _find_pictures(content: dict[str, Any], split: str, file: Path) -> list[Path]:
    """Return the paths of a split's pictures, each once, sorted within each folder."""
    splits = [key for key in ("train", "val", "test") if content.get(key)]
    if split not in splits:
        raise UserError(f"split '{split}': {file} has the splits {', '.join(splits) or 'none'}")
    entries = content[split] if isinstance(content[split], list) else [content[split]]
    top = file.parent / str(content.get("path") or "")
    # A 'path' is often relative to the folder in which its author worked.
    top = top if top.is_dir() else file.parent
    paths = [path for entry in entries for path in _expand(top, str(entry), file)]
    if not paths:
        raise UserError(f"split '{split}': no picture in {', '.join(map(str, entries))} of {top}")
    return _without_repeats([Path(os.path.normpath(path.absolute())) for path in paths])


def _without_repeats(paths: Sequence[Path]) -> list[Path]:
    """Return each picture once, also if links lead to its folder in several ways."""
    real = {folder: os.path.realpath(folder) for folder in {path.parent for path in paths}}
    first: dict[tuple[str, str], Path] = {}
    for path in paths:
        first.setdefault((real[path.parent], path.name), path)
    return list(first.values())


def _expand(top: Path, entry: str, file: Path) -> list[Path]:
    """Return the pictures of a folder, or of a text file that lists them."""
    path = top / entry
    with reading(path):
        if not path.exists() and entry.startswith("../"):
            path = top / entry.removeprefix("../")  # Roboflow's files are relative to a sub-folder.
        if path.is_dir():
            return sorted(_pictures_below(path))
    if path.suffix != ".txt" or not path.exists():
        raise UserError(f"{file}: there is no folder or list of pictures {path}")
    lines = read_text(path).splitlines()
    return [path.parent / line.strip() for line in lines if line.strip()]


def _pictures_below(top: Path) -> Iterator[Path]:
    """Yield the pictures in a folder and its sub-folders. Links to folders are followed.

    A folder that is reached twice is read once: without a link if possible, because its labels have
    the same path.
    """
    folders, links, seen = [top], list[Path](), set()
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        with reading(folder), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(Path(entry))
                elif Path(entry).suffix.lower() in SUFFIXES:
                    yield Path(entry)


def _label_file(picture: Path) -> Path:
    """Return the text file of a picture: the last folder 'images' becomes 'labels'."""
    parts = list(picture.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _read_labels(file: Path, num_classes: int) -> list[tuple[int, list[float]]]:
    """Return (label, box) of each line. A box is (x, y, width, height), as fractions."""
    if not file.exists():
        return []
    lines = read_text(file).splitlines()
    return [
        _parse_line(line, f"{file}: line {number}", num_classes)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _parse_line(line: str, where: str, num_classes: int) -> tuple[int, list[float]]:
    try:
        label, *values = map(float, line.split())
    except ValueError:
        raise UserError(f"{where}: is {line!r}, must be numbers") from None
    if label not in range(num_classes):
        raise UserError(f"{where}: class {label:g} must be 0 to {num_classes - 1}, as in 'names'")
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise UserError(
            f"{where}: has {len(values)} numbers after the class, must be centre_x, centre_y, "
            "width and height, or three or more points"
        )
    if not all(-ROUNDING <= value <= 1 + ROUNDING for value in values):
        raise UserError(
            f"{where}: is {line!r}, must have fractions of the picture's width and height, 0 to 1"
        )
    if len(values) == 4:
        x, y, width, height = values
        return int(label), [x - width / 2, y - height / 2, width, height]
    xs, ys = values[::2], values[1::2]
    return int(label), [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _objects(boxes_xywh: Float64[np.ndarray, "M 4"], labels: Sequence[int]) -> Objects:
    return Objects(
        boxes_xywh=boxes_xywh,
        labels=np.array(labels, np.int32),
        is_crowd=np.zeros(len(labels), bool),
        is_difficult=np.zeros(len(labels), bool),
        areas=boxes_xywh[:, 2:].prod(axis=1),
        ids=np.arange(1, len(labels) + 1),
    )
