"""COCO ground truth to `Picture`s: what is checked, and which boxes are trained on."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from rpn_jax.data.dataset import Picture
from rpn_jax.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, Int

MAX_OVERHANG = 1.0
"""Pixels a box may reach out of its picture and still pass as rounding."""


def pictures_from_coco(coco: dict[str, Any], source: str, clip_boxes: bool) -> list[Picture]:
    """Check a COCO ground truth and gather each picture's boxes.

    As in the reference, boxes marked 'iscrowd' or 'ignore', without area, or narrower or lower
    than a pixel are not trained on. A box that reaches out of its picture by up to `MAX_OVERHANG`
    is cut at the border.

    Args:
      coco: 'images' and 'annotations' of a COCO file. Changed in place: each annotation gets the
        'area' and 'iscrowd' that evaluation needs, where the file leaves them out.
      source: name of the file, for messages.
      clip_boxes: cut boxes that reach out further too, and leave out those with no overlap.

    Raises:
      UserError: an image or annotation that is broken, or a box that reaches out of its picture.
    """
    images, annotations = coco["images"], coco["annotations"]
    for number, image in enumerate(images):
        _check_image(image, f"{source}: image number {number}")
    position = {image["id"]: index for index, image in enumerate(images)}
    _check_unique([image["id"] for image in images], "image", source)
    for number, annotation in enumerate(annotations):
        _check_annotation(annotation, number, position, source)
    _check_unique([annotation["id"] for annotation in annotations], "annotation", source)
    for annotation in annotations:
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        annotation.setdefault("iscrowd", 0)

    trained = [annotation for annotation in annotations if _is_trained(annotation)]
    owner = np.array([position[annotation["image_id"]] for annotation in trained], np.int64)
    xywh = np.array([annotation["bbox"] for annotation in trained], np.float64).reshape(-1, 4)
    boxes_xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    sizes = np.array([(image["width"], image["height"]) for image in images]).reshape(-1, 2)
    limits = np.tile(sizes[owner], 2)
    if not clip_boxes:
        overhang = np.maximum(-boxes_xyxy, boxes_xyxy - limits).max(axis=1, initial=0.0)
        for index in np.flatnonzero(overhang > MAX_OVERHANG)[:1]:
            raise UserError(_outside_message(trained[index], images[owner[index]], source))
    boxes = _boxes_of_pictures(np.clip(boxes_xyxy, 0, limits), owner, len(images))
    return [
        Picture(image["id"], image["file_name"], image["height"], image["width"], boxes_xyxy)
        for image, boxes_xyxy in zip(images, boxes, strict=True)
    ]


def _boxes_of_pictures(
    boxes_xyxy: Float64[np.ndarray, "M 4"], owner: Int[np.ndarray, " M"], num_pictures: int
) -> list[Float32[np.ndarray, "G 4"]]:
    """The boxes with area of each picture, in file order."""
    exists = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1)
    boxes_xyxy, owner = boxes_xyxy[exists].astype(np.float32), owner[exists]
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(np.bincount(owner, minlength=num_pictures))
    return np.split(boxes_xyxy[order], ends)[:num_pictures]


def _is_trained(annotation: dict[str, Any]) -> bool:
    _, _, width, height = annotation["bbox"]
    left_out = annotation["iscrowd"] or annotation.get("ignore", False)
    return not left_out and annotation["area"] > 0 and width >= 1 and height >= 1


def _check_image(image: Any, where: str) -> None:
    if not isinstance(image, dict):
        raise UserError(f"{where} is {image!r}: must be an object")
    for key, wanted in (("id", int), ("file_name", str), ("height", int), ("width", int)):
        if not isinstance(image.get(key), wanted):
            kind = "a whole number" if wanted is int else "a text"
            raise UserError(f"{where}: '{key}' is {image.get(key)!r}, must be {kind}")
    for key in ("height", "width"):
        if image[key] < 1:
            raise UserError(f"{where}: '{key}' is {image[key]}, must be 1 or more")


def _check_annotation(annotation: Any, number: int, position: dict[int, int], source: str) -> None:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("id"), int):
        raise UserError(f"{source}: annotation number {number} must be an object with a whole 'id'")
    where = f"{source}: annotation {annotation['id']}"
    image_id = annotation.get("image_id")
    if not isinstance(image_id, int) or image_id not in position:
        raise UserError(f"{where}: 'image_id' is {image_id!r}, but the file has no such image")
    bbox = annotation.get("bbox")
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))):
        raise UserError(f"{where}: 'bbox' is {bbox!r}, must be [x, y, width, height] in pixels")
    if min(bbox[2:]) < 0:
        raise UserError(f"{where}: 'bbox' is {bbox}, its width and height must be 0 or more")
    area = annotation.get("area", 0)
    if not _is_number(area) or area < 0:
        raise UserError(f"{where}: 'area' is {area!r}, must be a number of pixels, 0 or more")
    for key in ("iscrowd", "ignore"):
        if annotation.get(key, 0) not in (0, 1):
            raise UserError(f"{where}: '{key}' is {annotation[key]!r}, must be 0 or 1")


def _check_unique(ids: list[int], kind: str, source: str) -> None:
    if len(set(ids)) < len(ids):
        twice = next(i for i, times in Counter(ids).items() if times > 1)
        raise UserError(f"{source}: two {kind}s have the id {twice}; ids must differ")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _outside_message(annotation: dict[str, Any], image: dict[str, Any], source: str) -> str:
    return (
        f"{source}: annotation {annotation['id']} of {image['file_name']}: "
        f"bbox {annotation['bbox']} (x, y, width, height) reaches out of the picture of "
        f"{image['width']}x{image['height']} (width x height); correct it, or cut such boxes "
        "with --data.clip-boxes"
    )
