"""Check flat arrays of objects and divide them among their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.data.dataset import Objects, Picture
from rpn_jax.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64

MAX_OVERHANG = 1.0
"""Pixels by which a box may reach out of its picture. More than rounding is an error."""
SURE_BOXES = 10
"""Number of boxes that must all fit as corners before `clip_boxes` refuses them."""
SURE_OVERHANG = 0.25
"""Share of the picture's side by which one of them must reach out as (x, y, width, height)."""

CLIP_REMEDY = "Correct it, or clip such boxes with --data.clip-boxes"
CORNERS_REMEDY = (
    "All {count} boxes fit into their pictures as corners (x1, y1, x2, y2). If they are corners, "
    "write x2 - x1 and y2 - y1 as width and height"
)


def assign_objects(
    pictures: Sequence[Picture],
    objects: Objects,
    owner: Int64[np.ndarray, " M"],
    source: str,
    clip_boxes: bool,
) -> list[Picture]:
    """Return the pictures with their objects, in the given order of both.

    Args:
      pictures: all pictures, without objects.
      objects: the objects of all pictures.
      owner: position of each object's picture.
      source: name of the file, for messages.
      clip_boxes: accept boxes that reach out of their picture by more than `MAX_OVERHANG`.

    Raises:
      UserError: a box that could be trained on reaches out of its picture, or all boxes look like
        fractions, or like corners (x1, y1, x2, y2).
    """
    _check_pixels(objects.boxes_xywh, source)
    _check_inside(pictures, objects, owner, source, clip_boxes)
    order = np.argsort(owner, kind="stable")
    objects = objects.select(order)
    ends = np.cumsum(np.bincount(owner, minlength=len(pictures))).tolist()
    return [
        replace(picture, objects=objects.select(slice(start, end)))
        for picture, start, end in zip(pictures, [0, *ends][:-1], ends, strict=True)
    ]


def overhang(objects: Objects, sizes_wh: Int64[np.ndarray, "M 2"]) -> Float64[np.ndarray, " M"]:
    """Return how far each box reaches out of its picture, in pixels. 0 or less lies inside.

    Args:
      objects: objects of one or more pictures.
      sizes_wh: (width, height) of each object's picture, pixels.
    """
    low, high = objects.boxes_xywh[:, :2], objects.boxes_xywh[:, :2] + objects.boxes_xywh[:, 2:]
    return np.maximum(-low, high - sizes_wh).max(axis=1)


def _check_pixels(boxes_xywh: Float64[np.ndarray, "M 4"], source: str) -> None:
    """Refuse boxes that are fractions of the picture: all values are 0 to 1, and not all whole."""
    if (boxes_xywh <= 1).all() and (boxes_xywh % 1 > 0).any():
        raise UserError(
            f"{source}: all values of all {len(boxes_xywh)} boxes are at most 1, so they look like "
            "fractions of the picture. Boxes must be in pixels. Multiply x and width by the "
            "picture's width, y and height by its height"
        )


def _check_inside(
    pictures: Sequence[Picture],
    objects: Objects,
    owner: Int64[np.ndarray, " M"],
    source: str,
    clip_boxes: bool,
) -> None:
    x, y, width, height = objects.boxes_xywh.T
    sizes_wh = np.array([(picture.width, picture.height) for picture in pictures]).reshape(-1, 2)
    picture_width, picture_height = sizes_wh[owner].T
    right, bottom = x + width - picture_width, y + height - picture_height
    is_used = ~(objects.is_crowd | objects.is_difficult) & (objects.areas > 0)
    is_outside = (
        is_used & (width >= 1) & (height >= 1) & (overhang(objects, sizes_wh[owner]) > MAX_OVERHANG)
    )
    are_corners = _fit_as_corners(objects.boxes_xywh[is_used], sizes_wh[owner[is_used]])
    if clip_boxes:
        shares = np.maximum(right / picture_width, bottom / picture_height)
        is_sure = is_used.sum() >= SURE_BOXES and shares.max(initial=0) > SURE_OVERHANG
        if not (are_corners and is_sure):
            return
    for index in np.flatnonzero(is_outside)[:1]:
        picture = pictures[owner[index]]
        bbox = [
            int(side) if side.is_integer() else side for side in objects.boxes_xywh[index].tolist()
        ]
        raise UserError(
            f"{source}: annotation {objects.ids[index]} of {picture.name}: bbox {bbox} (x, y, "
            f"width, height) reaches out of the picture of {picture.width}x{picture.height} "
            "(width x height). "
            + (CORNERS_REMEDY.format(count=is_used.sum()) if are_corners else CLIP_REMEDY)
        )


def _fit_as_corners(boxes: Float64[np.ndarray, "M 4"], sizes_wh: Int64[np.ndarray, "M 2"]) -> bool:
    """Return whether all boxes lie in their pictures if they are read as (x1, y1, x2, y2)."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return bool(((low >= -MAX_OVERHANG) & (low < high) & (high <= sizes_wh + MAX_OVERHANG)).all())
