"""Read COCO ground truth files into arrays.

A file of COCO's train2017 has 300 MB, most of it outlines. msgspec decodes the few fields that are
needed and skips all others. Outlines are only decoded if a 'bbox' is missing. Only if msgspec
refuses the file, or a value is out of range, Python's own parser reads the file again, and
`coco_checks` names the entry that is wrong.
"""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np

from rpn_jax.data.annotations import assign_objects
from rpn_jax.data.coco_checks import check_entries, name_in_url, read_coco_slowly
from rpn_jax.data.coco_ids import RawId, plain_id, whole_ids
from rpn_jax.data.coco_outlines import LARGEST, Pixels, box_and_area, read_outlines
from rpn_jax.data.dataset import Objects, Picture, Verified
from rpn_jax.data.images import MAX_SIDE
from rpn_jax.errors import UserError
from rpn_jax.files import NESTED_TOO_DEEPLY, read_file

if TYPE_CHECKING:
    from jaxtyping import Int64

NO_CATEGORIES = ("object",)
"""The only class of a file without categories."""

_Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | float | str
_Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
_Size = Annotated[float, msgspec.Meta(ge=0, le=LARGEST)]
_Flag = Literal[0, 1] | bool


class _Image(msgspec.Struct, gc=False):
    id: _Id
    height: _Side
    width: _Side
    file_name: str | msgspec.UnsetType = msgspec.UNSET
    coco_url: Any = None
    neg_category_ids: Any = msgspec.UNSET
    not_exhaustive_category_ids: Any = msgspec.UNSET


class _Annotation(msgspec.Struct, gc=False):
    id: _Id
    image_id: _Id
    bbox: tuple[Pixels, Pixels, _Size, _Size] | msgspec.UnsetType = msgspec.UNSET
    category_id: _Id | None = None
    area: _Size | msgspec.UnsetType = msgspec.UNSET
    iscrowd: _Flag = 0
    ignore: _Flag = 0


class _Category(msgspec.Struct):
    id: _Id
    name: str
    frequency: Any = None


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
    frequencies: Mapping[str, str]
    """'r', 'c' or 'f' by the name of the class, if the file has LVIS's frequencies."""


def read_coco(file: Path, clip_boxes: bool) -> GroundTruth:
    """Read and check a COCO file.

    'area', 'iscrowd' and 'ignore' of an annotation may be missing. A missing 'bbox' is computed
    from the 'segmentation'. Without categories, all boxes are of one class. Ids may be whole
    numbers, floats or texts, see `whole_ids`.

    Args:
      file: JSON with 'images', 'annotations' and 'categories'.
      clip_boxes: see `assign_objects`.

    Raises:
      UserError: the file cannot be read or is not a COCO file, an entry is broken, or a box reaches
        out of its picture.
    """
    with _collector_paused():
        return _read(file, clip_boxes)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause Python's cycle collector. It would visit the new objects again and again.

    Without this pause, opening a file of train2017's size takes a sixth longer.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read(file: Path, clip_boxes: bool) -> GroundTruth:
    coco = _decode(file)
    coco.categories = _without_repeats(coco)
    names = tuple(category.name for category in coco.categories) or NO_CATEGORIES
    category_ids = tuple(whole_ids([category.id for category in coco.categories])) or (1,)
    image_ids = whole_ids([image.id for image in coco.images])
    if any(each.bbox is msgspec.UNSET for each in coco.annotations):
        _fill_boxes(coco, file)
    owner = _positions([image.id for image in coco.images], [a.image_id for a in coco.annotations])
    objects = _objects(coco)
    if not _is_valid(coco, objects, owner):
        check_entries(read_coco_slowly(file), str(file))
    label_of = {plain_id(each.id): label for label, each in enumerate(coco.categories)}
    pictures = [
        Picture(
            image_id,
            _file_name(image),
            image.height,
            image.width,
            verified=_verified(image, label_of, file),
        )
        for image_id, image in zip(image_ids, coco.images, strict=True)
    ]
    frequencies = {
        each.name: each.frequency for each in coco.categories if each.frequency in ("r", "c", "f")
    }
    del coco
    pictures = assign_objects(pictures, objects, owner, str(file), clip_boxes)
    return GroundTruth(pictures, names, category_ids, frequencies)


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
        coco = read_coco_slowly(file)
        check_entries(coco, str(file))
        # Python accepts what msgspec refuses: NaN in a field that is not used.
        return msgspec.convert(coco, _Coco)


def _without_repeats(coco: _Coco) -> list[_Category]:
    """Leave out categories without annotations if another one has the same name.

    Some programs write a category for the group of all classes. It can have the name of a class.
    """
    repeated = {name for name, n in Counter(c.name for c in coco.categories).items() if n > 1}
    ids_differ = len({plain_id(each.id) for each in coco.categories}) == len(coco.categories)
    if not repeated or not ids_differ:  # Ids that do not differ are an error.
        return coco.categories
    used = {plain_id(each.category_id) for each in coco.annotations if each.category_id is not None}
    last_of = {category.name: category for category in coco.categories}
    annotated = {category.name for category in coco.categories if plain_id(category.id) in used}
    return [
        category
        for category in coco.categories
        if category.name not in repeated
        or plain_id(category.id) in used
        or (category.name not in annotated and category is last_of[category.name])
    ]


def _file_name(image: _Image) -> str:
    """Return the name of a picture's file, or '' without one.

    LVIS 1.0 has URLs instead of names: http://images.cocodataset.org/val2017/000000000139.jpg.
    """
    if image.file_name is not msgspec.UNSET:
        return image.file_name
    return name_in_url(image.coco_url)


def _verified(image: _Image, label_of: Mapping[RawId, int], file: Path) -> Verified | None:
    """Return what LVIS's lists of categories say about a picture, or None without them."""
    fields = {
        "neg_category_ids": image.neg_category_ids,
        "not_exhaustive_category_ids": image.not_exhaustive_category_ids,
    }
    if all(ids is msgspec.UNSET for ids in fields.values()):
        return None
    labels = []
    for name, ids in fields.items():
        ids = [] if ids is msgspec.UNSET else ids
        is_list = isinstance(ids, list) and all(isinstance(each, RawId) for each in ids)
        known = [label_of.get(plain_id(each), -1) for each in ids] if is_list else [-1]
        if -1 in known:
            raise UserError(
                f"{file}: image {image.id}: '{name}' is {ids}, must be a list of category ids of "
                "the file"
            )
        labels.append(np.array(known, np.int32))
    return Verified(*labels)


def _fill_boxes(coco: _Coco, file: Path) -> None:
    """Compute the boxes that are missing from the outlines, in place."""
    sizes = {plain_id(image.id): (image.height, image.width) for image in coco.images}
    missing = [at for at, each in enumerate(coco.annotations) if each.bbox is msgspec.UNSET]
    try:
        for at, outline in zip(missing, read_outlines(file, missing), strict=True):
            annotation = coco.annotations[at]
            size = sizes.get(plain_id(annotation.image_id))
            annotation.bbox, area = box_and_area(outline, size)
            if annotation.area is msgspec.UNSET:
                annotation.area = area
    except ValueError:
        check_entries(read_coco_slowly(file), str(file))
        raise


def _objects(coco: _Coco) -> Objects:
    annotations = coco.annotations
    boxes = (each.bbox for each in annotations if each.bbox is not msgspec.UNSET)
    flat = chain.from_iterable(boxes)
    boxes_xywh = np.fromiter(flat, np.float64, 4 * len(annotations)).reshape(-1, 4)
    areas = np.fromiter(
        (math.nan if each.area is msgspec.UNSET else each.area for each in annotations), np.float64
    )
    is_missing = np.isnan(areas)
    areas[is_missing] = boxes_xywh[is_missing, 2] * boxes_xywh[is_missing, 3]
    labels = np.zeros(len(annotations), np.int64)
    if coco.categories:
        names = [each.id for each in coco.categories]
        labels = _positions(names, [each.category_id for each in annotations])
    return Objects(
        boxes_xywh=boxes_xywh,
        labels=labels.astype(np.int32),
        is_crowd=np.fromiter((each.iscrowd for each in annotations), bool),
        is_difficult=np.fromiter((each.ignore for each in annotations), bool),
        areas=areas,
        ids=np.array(whole_ids([each.id for each in annotations]), np.int64),
    )


def _positions(ids: Sequence[RawId], wanted: Sequence[RawId | None]) -> Int64[np.ndarray, " n"]:
    """Return the position of each wanted id among ``ids``, -1 for unknown ones."""
    position: dict[RawId | None, int] = {plain_id(value): k for k, value in enumerate(ids)}
    found = np.fromiter((position.get(value, -1) for value in wanted), np.int64, len(wanted))
    for index in np.flatnonzero(
        found < 0
    ).tolist():  # an id can be 7 in one place and "7" in another
        found[index] = position.get(plain_id(wanted[index]), -1)
    return found


def _is_valid(coco: _Coco, objects: Objects, owner: Int64[np.ndarray, " M"]) -> bool:
    """Return whether the values fit together. The types are checked by the decoder."""
    return (
        bool(np.isfinite(objects.boxes_xywh).all() and np.isfinite(objects.areas).all())
        and bool((owner >= 0).all() and (objects.labels >= 0).all())
        and bool(np.diff(np.sort(objects.ids)).all())
        and all(map(_file_name, coco.images))
        and len({plain_id(image.id) for image in coco.images}) == len(coco.images)
        and len({plain_id(each.id) for each in coco.categories}) == len(coco.categories)
        and len({each.name for each in coco.categories}) == len(coco.categories)
    )
