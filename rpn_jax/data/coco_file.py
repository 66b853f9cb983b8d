"""Read COCO ground truth files into arrays.

A file of COCO's train2017 has 300 MB, most of it outlines. msgspec decodes the few fields that are
needed and skips all others. Only if it refuses the file, or a value is out of range, Python's own
parser reads the file again, and each entry is checked in turn to name the one that is wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np

from rpn_jax.data.annotations import assign_objects
from rpn_jax.data.dataset import Objects, Picture
from rpn_jax.errors import UserError
from rpn_jax.files import NESTED_TOO_DEEPLY, read_file, read_json

if TYPE_CHECKING:
    from jaxtyping import Int64

NO_CATEGORIES = ("object",)
"""The only class of a file without categories."""
SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}
KEYS = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "categories": {"id": int, "name": str},
}
"""Required keys of the entries of a list, and their types."""


_Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Side = Annotated[int, msgspec.Meta(ge=1)]
_Size = Annotated[float, msgspec.Meta(ge=0)]
_Flag = Literal[0, 1] | bool


class _Image(msgspec.Struct, gc=False):
    id: _Id
    file_name: str
    height: _Side
    width: _Side


class _Annotation(msgspec.Struct, gc=False):
    id: _Id
    image_id: _Id
    bbox: tuple[float, float, _Size, _Size]
    category_id: _Id | None = None
    area: _Size | msgspec.UnsetType = msgspec.UNSET
    iscrowd: _Flag = 0
    ignore: _Flag = 0


class _Category(msgspec.Struct):
    id: _Id
    name: str


class _Coco(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category] = []


@dataclass(frozen=True)
class GroundTruth:
    """The content of a COCO file."""

    pictures: list[Picture]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]


def read_coco(file: Path, clip_boxes: bool) -> GroundTruth:
    """Read and check a COCO file.

    'area', 'iscrowd' and 'ignore' of an annotation may be missing, and the categories too: all
    boxes are then of one class.

    Args:
      file: JSON with 'images', 'annotations' and 'categories'.
      clip_boxes: see `assign_objects`.

    Raises:
      UserError: the file cannot be read or is not a COCO file, an entry is broken, or a box reaches
        out of its picture.
    """
    coco = _decode(file)
    position = {image.id: index for index, image in enumerate(coco.images)}
    owner = _int_array(position.get(each.image_id, -1) for each in coco.annotations)
    names = tuple(category.name for category in coco.categories) or NO_CATEGORIES
    ids = tuple(category.id for category in coco.categories) or (1,)
    objects = _objects(coco, {number: label for label, number in enumerate(ids)})
    if not _is_valid(coco, objects, owner):
        _check(_read_slowly(file), str(file))
    pictures = [Picture(each.id, each.file_name, each.height, each.width) for each in coco.images]
    del coco
    return GroundTruth(assign_objects(pictures, objects, owner, str(file), clip_boxes), names, ids)


def coco_images(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Return the 'images' of a COCO file for the pictures."""
    return [
        {
            "id": picture.image_id,
            "file_name": picture.name,
            "height": picture.height,
            "width": picture.width,
        }
        for picture in pictures
    ]


def _decode(file: Path) -> _Coco:
    try:
        return msgspec.json.decode(read_file(file), type=_Coco)
    except RecursionError:
        raise UserError(f"{file}: {NESTED_TOO_DEEPLY}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        coco = _read_slowly(file)
        _check(coco, str(file))
        # Python accepts what msgspec refuses: NaN in a field that is not used.
        return msgspec.convert(coco, _Coco)


def _objects(coco: _Coco, label_of: dict[int | None, int]) -> Objects:
    annotations = coco.annotations
    flat = chain.from_iterable(each.bbox for each in annotations)
    boxes_xywh = np.fromiter(flat, np.float64, 4 * len(annotations)).reshape(-1, 4)
    areas = np.fromiter(
        (math.nan if each.area is msgspec.UNSET else each.area for each in annotations), np.float64
    )
    is_missing = np.isnan(areas)
    areas[is_missing] = boxes_xywh[is_missing, 2] * boxes_xywh[is_missing, 3]
    labels = (
        [label_of.get(each.category_id, -1) for each in annotations]
        if coco.categories
        else np.zeros(len(annotations))
    )
    return Objects(
        boxes_xywh=boxes_xywh,
        labels=np.asarray(labels, np.int32),
        is_crowd=np.fromiter((each.iscrowd for each in annotations), bool),
        is_difficult=np.fromiter((each.ignore for each in annotations), bool),
        areas=areas,
        ids=_int_array(each.id for each in annotations),
    )


def _int_array(values: Iterable[int]) -> Int64[np.ndarray, " n"]:
    return np.fromiter(values, np.int64)


def _is_valid(coco: _Coco, objects: Objects, owner: Int64[np.ndarray, " M"]) -> bool:
    """Return whether the values fit together. The types are checked by the decoder."""
    return (
        bool(np.isfinite(objects.boxes_xywh).all() and np.isfinite(objects.areas).all())
        and bool((owner >= 0).all() and (objects.labels >= 0).all())
        and bool(np.diff(np.sort(objects.ids)).all())
        and len({image.id for image in coco.images}) == len(coco.images)
        and len({category.id for category in coco.categories}) == len(coco.categories)
    )


def _read_slowly(file: Path) -> Any:
    coco = read_json(file)
    for key in ("images", "annotations"):
        if not isinstance(coco, dict) or not isinstance(coco.get(key), list):
            raise UserError(f"{file}: is not a COCO file, because it has no list '{key}'")
    coco.setdefault("categories", [])
    return coco


def _check(coco: dict[str, Any], source: str) -> None:
    """Raise UserError for the first entry that is broken."""
    for key in ("images", "categories"):
        for number, entry in enumerate(coco[key]):
            _check_entry(entry, f"{source}: {SINGULAR[key]} number {number}", KEYS[key])
    image_ids = {image["id"] for image in coco["images"]}
    category_ids = {category["id"] for category in coco["categories"]}
    for number, annotation in enumerate(coco["annotations"]):
        if not isinstance(annotation, dict) or not _is_id(annotation.get("id")):
            raise UserError(
                f"{source}: annotation number {number} must be an object with a whole 'id'"
            )
        _check_annotation(annotation, image_ids, category_ids, source)
    for key in SINGULAR:
        counts = Counter(entry["id"] for entry in coco[key])
        for repeated in [number for number, times in counts.items() if times > 1][:1]:
            raise UserError(f"{source}: two {key} have the id {repeated}. Ids must differ")


def _check_entry(entry: Any, where: str, keys: dict[str, type]) -> None:
    """Check an image or a category."""
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {entry!r}: must be an object")
    for key, wanted in keys.items():
        value = entry.get(key)
        if not (_is_id(value) if wanted is int else isinstance(value, str)):
            kind = "a whole number" if wanted is int else "a text"
            raise UserError(f"{where}: '{key}' is {value!r}, must be {kind}")
        if key in ("height", "width") and entry[key] < 1:
            raise UserError(f"{where}: '{key}' is {value}, must be 1 or more")


def _check_annotation(
    annotation: dict[str, Any], image_ids: set[int], category_ids: set[int], source: str
) -> None:
    where = f"{source}: annotation {annotation['id']}"
    ids = [("image", image_ids)] + ([("category", category_ids)] if category_ids else [])
    for kind, known in ids:
        value = annotation.get(f"{kind}_id")
        if not _is_id(value) or value not in known:
            raise UserError(f"{where}: '{kind}_id' is {value!r}, but the file has no such {kind}")
    bbox = annotation.get("bbox")
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


def _is_id(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
