"""Anchors: the fixed reference boxes at every cell of every level (Ren et al. 2015, section 3.1.1).

The flat order is row, column, anchor. Within a cell, anchors are ordered by ratio, then by scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from rpn_jax.config import CANVAS_MULTIPLE, AnchorConfig
from rpn_jax.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Integer

LevelShapes = Sequence[tuple[int, int]]
"""(rows, columns) of each level, finest first."""


def base_anchors(stride: int, scales: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Return the anchors of the cell at the origin, float32 [A, 4] xyxy pixels, not rounded.

    They are centred at 0. ``ratios`` are height / width, and the area of an anchor is
    (stride * scale)^2. The float32 arithmetic is that of the reference.
    """
    height_ratios = np.sqrt(np.asarray(ratios, np.float32))
    width_ratios = np.float32(1) / height_ratios
    sizes = np.asarray(scales, np.float32)
    widths = (np.float32(stride) * width_ratios[:, None] * sizes).reshape(-1)
    heights = (np.float32(stride) * height_ratios[:, None] * sizes).reshape(-1)
    half = np.float32(0.5)
    corners = [-half * widths, -half * heights, half * widths, half * heights]
    return np.stack(corners, axis=-1)


def grid_anchors(
    level_shapes: LevelShapes, anchors: AnchorConfig
) -> tuple[Float[Array, "_ 4"], ...]:
    """Return the anchors of each level, float32 xyxy pixels, not clipped.

    Raises:
      UserError: the number of levels differs from that of ``anchors.strides``.
    """
    _check_levels(level_shapes, anchors)
    return tuple(
        _level_anchors(shape, stride, base_anchors(stride, anchors.scales, anchors.ratios))
        for shape, stride in zip(level_shapes, anchors.strides, strict=True)
    )


def anchor_validity(
    level_shapes: LevelShapes, anchors: AnchorConfig, image_sizes: Integer[Array, "B 2"]
) -> Bool[Array, "B K"]:
    """Return True where an anchor exists for a picture.

    It does not depend on the canvas that the batch is padded to. With the picture's (height, width)
    rounded up to a multiple of 32, a cell exists if row < ceil(height / stride) and
    column < ceil(width / stride) (reference behaviour).

    Raises:
      UserError: the number of levels differs from that of ``anchors.strides``.
    """
    return jnp.concatenate(level_validity(level_shapes, anchors, image_sizes), axis=1)


def level_validity(
    level_shapes: LevelShapes, anchors: AnchorConfig, image_sizes: Integer[Array, "B 2"]
) -> tuple[Bool[Array, "B _"], ...]:
    """Return `anchor_validity` as one array for each level."""
    _check_levels(level_shapes, anchors)
    # Rounding up negates the sizes, which would wrap around in an unsigned dtype.
    canvas = -(-jnp.asarray(image_sizes, jnp.int32) // CANVAS_MULTIPLE) * CANVAS_MULTIPLE

    def one_level(shape: tuple[int, int], stride: int) -> Bool[Array, "B HlWlA"]:
        cells = -(-canvas // stride)
        row_exists = jnp.arange(shape[0]) < cells[:, 0, None]
        column_exists = jnp.arange(shape[1]) < cells[:, 1, None]
        exists = row_exists[:, :, None, None] & column_exists[:, None, :, None]
        exists = jnp.broadcast_to(exists, (len(canvas), *shape, anchors.per_cell))
        return exists.reshape(len(canvas), -1)

    return tuple(map(one_level, level_shapes, anchors.strides))


def _level_anchors(shape: tuple[int, int], stride: int, base: np.ndarray) -> Float[Array, "_ 4"]:
    y = (jnp.arange(shape[0]) * stride).astype(jnp.float32)
    x = (jnp.arange(shape[1]) * stride).astype(jnp.float32)
    x, y = jnp.meshgrid(x, y)
    centres = jnp.stack([x, y, x, y], axis=-1)
    return (centres[:, :, None, :] + base).reshape(-1, 4)


def _check_levels(level_shapes: LevelShapes, anchors: AnchorConfig) -> None:
    if len(level_shapes) != len(anchors.strides):
        raise UserError(
            f"model.rpn.anchors.strides = {anchors.strides}: the network has {len(level_shapes)} "
            f"levels. There must be one stride for each level."
        )
