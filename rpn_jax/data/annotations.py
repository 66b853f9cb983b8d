"""Check flat arrays of objects and divide them among their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.data.dataset import Objects, Picture
from rpn_jax.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Int64

MAX_OVERHANG = 1.0
"""Pixels by which a box may reach out of its picture. More than rounding is an error."""


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
      UserError: a box that could be trained on reaches out of its picture.
    """
    if not clip_boxes:
        _check_inside(pictures, objects, owner, source)
    order = np.argsort(owner, kind="stable")
    objects = objects.select(order)
    ends = np.cumsum(np.bincount(owner, minlength=len(pictures))).tolist()
    return [
        replace(picture, objects=objects.select(slice(start, end)))
        for picture, start, end in zip(pictures, [0, *ends][:-1], ends, strict=True)
    ]


def _check_inside(
    pictures: Sequence[Picture], objects: Objects, owner: Int64[np.ndarray, " M"], source: str
) -> None:
    x, y, width, height = objects.boxes_xywh.T
    sizes_wh = np.array([(picture.width, picture.height) for picture in pictures]).reshape(-1, 2)
    picture_width, picture_height = sizes_wh[owner].T
    overhang = np.max([-x, -y, x + width - picture_width, y + height - picture_height], axis=0)
    is_used = ~(objects.is_crowd | objects.is_difficult) & (objects.areas > 0)
    is_outside = is_used & (width >= 1) & (height >= 1) & (overhang > MAX_OVERHANG)
    for index in np.flatnonzero(is_outside)[:1]:
        picture = pictures[owner[index]]
        bbox = [
            int(side) if side.is_integer() else side for side in objects.boxes_xywh[index].tolist()
        ]
        raise UserError(
            f"{source}: annotation {objects.ids[index]} of {picture.name}: bbox {bbox} (x, y, "
            f"width, height) reaches out of the picture of {picture.width}x{picture.height} "
            "(width x height). Correct it, or clip such boxes with --data.clip-boxes"
        )
