"""Anchors: the fixed reference boxes at every cell of every level (Ren et al. 2015, section 3.1.1).

Flat order is row, column, anchor; an anchor's place within its cell is ratio first, then scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from rpn_jax.config import CANVAS_MULTIPLE, AnchorConfig
from rpn_jax.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

LevelShapes = Sequence[tuple[int, int]]
"""(rows, columns) of each level, finest first."""


def base_anchors(stride: int, scales: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """The anchors of the cell at the origin, f32[A, 4] xyxy pixels, centred at 0 and not rounded.

    ``ratios`` are height / width; an anchor's area is (stride * scale)^2. The float32 arithmetic is
    the reference's.
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
) -> tuple[Float[Array, "HlWlA 4"], ...]:
    """The anchors of each level, f32[Hl * Wl * A, 4] xyxy pixels; none is cut at a border.

    Raises:
      UserError: the number of levels is not that of ``anchors.strides``.
    """
    _check_levels(level_shapes, anchors)
    return tuple(
        _level_anchors(shape, stride, base_anchors(stride, anchors.scales, anchors.ratios))
        for shape, stride in zip(level_shapes, anchors.strides, strict=True)
    )


def anchor_validity(
    level_shapes: LevelShapes, anchors: AnchorConfig, image_sizes: Int[Array, "B 2"]
) -> Bool[Array, "B K"]:
    """True where an anchor exists for a picture, whatever canvas the batch was padded to.

    With the picture's (height, width) rounded up to a multiple of 32, a cell exists if
    row < ceil(height / stride) and column < ceil(width / stride) (reference behaviour).

    Raises:
      UserError: the number of levels is not that of ``anchors.strides``.
    """
    return jnp.concatenate(level_validity(level_shapes, anchors, image_sizes), axis=1)


def level_validity(
    level_shapes: LevelShapes, anchors: AnchorConfig, image_sizes: Int[Array, "B 2"]
) -> tuple[Bool[Array, "B HlWlA"], ...]:
    """`anchor_validity`, one array a level."""
    _check_levels(level_shapes, anchors)
    # Unsigned sizes would wrap around where they are negated to round up.
    canvas = -(-jnp.asarray(image_sizes, jnp.int32) // CANVAS_MULTIPLE) * CANVAS_MULTIPLE

    def one_level(shape: tuple[int, int], stride: int) -> Bool[Array, "B HlWlA"]:
        cells = -(-canvas // stride)
        row_exists = jnp.arange(shape[0]) < cells[:, 0, None]
        column_exists = jnp.arange(shape[1]) < cells[:, 1, None]
        exists = row_exists[:, :, None, None] & column_exists[:, None, :, None]
        exists = jnp.broadcast_to(exists, (len(canvas), *shape, anchors.per_cell))
        return exists.reshape(len(canvas), -1)

    return tuple(map(one_level, level_shapes, anchors.strides))


def _level_anchors(
    shape: tuple[int, int], stride: int, base: np.ndarray
) -> Float[Array, "HlWlA 4"]:
    y = (jnp.arange(shape[0]) * stride).astype(jnp.float32)
    x = (jnp.arange(shape[1]) * stride).astype(jnp.float32)
    x, y = jnp.meshgrid(x, y)
    centres = jnp.stack([x, y, x, y], axis=-1)
    return (centres[:, :, None, :] + base).reshape(-1, 4)


def _check_levels(level_shapes: LevelShapes, anchors: AnchorConfig) -> None:
    if len(level_shapes) != len(anchors.strides):
        raise UserError(
            f"head outputs of {len(level_shapes)} levels: must be {len(anchors.strides)}, one for "
            f"each of model.rpn.anchors.strides {anchors.strides}"
        )
