"""Find the broken entry of a COCO file, to name it in an error message.

All this runs only for files that `coco_file` cannot read or whose values do not fit together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rpn_jax.data.coco_ids import RawId, plain_id
from rpn_jax.data.coco_outlines import LARGEST, box_and_area, convert_outline
from rpn_jax.data.images import MAX_SIDE
from rpn_jax.errors import UserError
from rpn_jax.files import read_json

SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}


class _Kind(NamedTuple):
    """What a value must be."""

    holds: Callable[[Any], bool]
    text: str


def read_coco_slowly(file: Path) -> Any:
    """Read a COCO file with Python's parser. Raises UserError if it is not JSON or has no lists."""
    coco = read_json(file)
    for key in ("images", "annotations"):
        if not isinstance(coco, dict) or not isinstance(coco.get(key), list):
            raise UserError(f"{file}: is not a COCO file, because it has no list '{key}'")
    categories = coco.setdefault("categories", [])
    if not isinstance(categories, list):
        raise UserError(
            f"{file}: 'categories' is of type {type(categories).__name__}. Remove it, or write a "
            "list"
        )
    return coco


def check_entries(coco: dict[str, Any], source: str) -> None:
    """Raise UserError for the first entry that is broken.

    Args:
      coco: what `read_coco_slowly` returned.
      source: name of the file.
    """
    for problem in find_problems(coco):
        raise UserError(f"{source}: {problem}")


def name_in_url(url: Any) -> str:
    """Return the path in a URL without its first slash, or '' for anything else."""
    return urlsplit(url).path.lstrip("/") if isinstance(url, str) else ""


def find_problems(coco: dict[str, Any]) -> Iterator[str]:
    """Yield one line for each broken entry: ``ENTRY: what is wrong``.

    Args:
      coco: what `read_coco_slowly` returned.
    """
    for key in ("images", "categories"):
        for number, entry in enumerate(coco[key]):
            yield from _problem_of(_check_entry, entry, f"{SINGULAR[key]} number {number}", key)
    images, categories = (
        {
            plain_id(entry["id"]): entry
            for entry in coco[key]
            if isinstance(entry, dict) and _is_id(entry.get("id"))
        }
        for key in ("images", "categories")
    )
    for number, annotation in enumerate(coco["annotations"]):
        if isinstance(annotation, dict) and _is_id(annotation.get("id")):
            yield from _problem_of(_check_annotation, annotation, images, categories)
        else:
            yield (
                f"annotation number {number} must be an object with an 'id': a whole number or a "
                "text"
            )
    for key in SINGULAR:
        entries = (entry for entry in coco[key] if isinstance(entry, dict))
        counts = Counter(plain_id(entry["id"]) for entry in entries if _is_id(entry.get("id")))
        for repeated in [number for number, times in counts.items() if times > 1]:
            yield f"two {key} have the id {repeated}. Ids must differ"
    used = {
        plain_id(each["category_id"])
        for each in coco["annotations"]
        if isinstance(each, dict) and _is_id(each.get("category_id"))
    }
    yield from _repeated_names([entry for key, entry in categories.items() if key in used])


def _repeated_names(categories: Sequence[Any]) -> Iterator[str]:
    """Yield one line for each name of several categories. Figures of classes go by their names.

    Args:
      categories: those that have annotations. The file reader leaves out the others.
    """
    ids: dict[str, list[RawId]] = {}
    for entry in categories:
        if _is_text(entry.get("name")):
            ids.setdefault(entry["name"], []).append(entry["id"])
    for name, same in ids.items():
        if len(same) > 1:
            numbers = " and ".join(map(str, same))
            yield f"categories {numbers}: have the same name {name!r}. Names must differ"


def _problem_of(check: Callable[..., None], *arguments: Any) -> Iterator[str]:
    try:
        check(*arguments)
    except UserError as problem:
        yield str(problem)


def _check_entry(entry: Any, where: str, list_name: str) -> None:
    """Check an image or a category."""
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {entry!r}: must be an object")
    for key, wanted in _KEYS[list_name].items():
        value: Any = entry.get(key)
        if key == "file_name" and key not in entry and name_in_url(entry.get("coco_url")):
            continue  # LVIS 1.0 has URLs instead of names
        if not wanted.holds(value):
            raise UserError(f"{where}: '{key}' is {value!r}, must be {wanted.text}")


def _check_annotation(
    annotation: dict[str, Any], images: dict[RawId, Any], categories: dict[RawId, Any]
) -> None:
    where = f"annotation {annotation['id']}"
    ids = [("image", images)] + ([("category", categories)] if categories else [])
    for kind, known in ids:
        value = annotation.get(f"{kind}_id")
        if not _is_id(value) or plain_id(value) not in known:
            raise UserError(f"{where}: '{kind}_id' is {value!r}, but the file has no such {kind}")
    bbox = annotation.get("bbox")
    if "bbox" not in annotation and annotation.get("segmentation"):
        image = images[plain_id(annotation["image_id"])]
        size = (image.get("height"), image.get("width"))
        bbox = _check_outline(annotation["segmentation"], size, where)
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))):
        raise UserError(f"{where}: 'bbox' is {bbox!r}, must be [x, y, width, height] in pixels")
    if min(bbox[2:]) < 0:
        raise UserError(f"{where}: 'bbox' is {bbox}, its width and height must be 0 or more")
    area = annotation.get("area", 0)
    if not _is_number(area) or area < 0:
        raise UserError(f"{where}: 'area' is {area!r}, must be a number of pixels, 0 or more")
    for key in ("iscrowd", "ignore"):
        value = annotation.get(key, 0)
        if type(value) not in (int, bool) or value not in (0, 1):
            raise UserError(f"{where}: '{key}' is {value!r}, must be 0 or 1")


def _check_outline(outline: Any, size: tuple[Any, Any], where: str) -> list[float]:
    """Return the box of an outline. Raise UserError if it has none."""
    try:
        bbox, _ = box_and_area(convert_outline(outline), size)
    except ValueError as error:
        raise UserError(
            f"{where}: has no 'bbox', and its 'segmentation' is broken ({error})"
        ) from None
    return list(bbox)


def _is_id(value: Any) -> bool:
    return (
        _is_whole(value)
        or isinstance(value, str)
        or (isinstance(value, float) and math.isfinite(value))
    )


def _is_whole(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST


_ID = _Kind(_is_id, "a whole number or a text")
_SIDE = _Kind(
    lambda value: _is_whole(value) and 1 <= value <= MAX_SIDE, f"a whole number, 1 to {MAX_SIDE}"
)
_TEXT = _Kind(_is_text, "a text")
_NAME = _Kind(lambda value: _is_text(value) and value != "", "a text that is not empty")
_KEYS = {
    "images": {"id": _ID, "file_name": _NAME, "height": _SIDE, "width": _SIDE},
    "categories": {"id": _ID, "name": _TEXT},
}
"""Required keys of the entries of a list."""
