"""Areas, overlaps and clipping of boxes.

Exact ties of the IoU decide training labels, so the order of the float32 operations is that of the
reference, and no product may be contracted with the sum that follows it into a fused multiply-add.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

Coordinates = tuple["Float[Array, '...']", ...]
"""x1, y1, x2, y2 as four arrays: contiguous in memory, which vectorises better than [..., 4]."""

_SMALLEST_UNION = 1e-6  # pixels squared; the reference's floor, so that 0 / 0 is 0


def split_coordinates(boxes_xyxy: Float[Array, "*N 4"]) -> Coordinates:
    """The four coordinates of boxes, each f32[*N]."""
    boxes_xyxy = jnp.asarray(boxes_xyxy, jnp.float32)
    return tuple(boxes_xyxy[..., k] for k in range(4))


def box_area(boxes_xyxy: Float[Array, "*N 4"]) -> Float[Array, "*N"]:
    """Areas f32[*N], pixels squared. 0 for a box with negative width or height."""
    return _area(split_coordinates(boxes_xyxy))


def box_iou(a: Float[Array, "*batch N 4"], b: Float[Array, "*batch M 4"]) -> Float[Array, "..."]:
    """Intersection over union of every box of ``a`` with every box of ``b``.

    Boxes are xyxy, in pixels. Returns f32[*batch, N, M] in [0, 1]; 0 where a box has no area. Equal
    bit for bit to the same float32 operations in NumPy, under jit too (on CPUs).

    >>> a = jnp.array([[0.0, 0.0, 2.0, 2.0]])
    >>> b = jnp.array([[1.0, 0.0, 3.0, 2.0], [2.0, 0.0, 4.0, 2.0]])
    >>> print(box_iou(a, b))
    [[0.33333334 0.        ]]
    """
    rows = tuple(x[..., :, None] for x in split_coordinates(a))
    columns = tuple(x[..., None, :] for x in split_coordinates(b))
    return elementwise_iou(rows, columns)


def elementwise_iou(a: Coordinates, b: Coordinates) -> Float[Array, "..."]:
    """IoU of boxes given as coordinates that broadcast against each other."""
    width = jnp.minimum(a[2], b[2]) - jnp.maximum(a[0], b[0])
    height = jnp.minimum(a[3], b[3]) - jnp.maximum(a[1], b[1])
    overlap = _unfused_product(jnp.maximum(width, 0.0), jnp.maximum(height, 0.0))
    union = (_area(a) + _area(b)) - overlap
    return overlap / jnp.maximum(union, _SMALLEST_UNION)


def clip_boxes(
    boxes_xyxy: Float[Array, "*batch N 4"], image_sizes: Int[Array, "*batch 2"]
) -> Float[Array, "*batch N 4"]:
    """Move corners that lie outside their picture to its border.

    Args:
      boxes_xyxy: pixels.
      image_sizes: (height, width) of each picture, pixels.

    >>> print(clip_boxes(jnp.array([[-3.0, 5.0, 90.0, 70.0]]), jnp.array([60, 80])))
    [[ 0.  5. 80. 60.]]
    """
    height, width = image_sizes[..., 0], image_sizes[..., 1]
    limits = jnp.stack([width, height, width, height], axis=-1).astype(jnp.float32)
    return jnp.clip(boxes_xyxy, 0.0, limits[..., None, :])


def _area(box: Coordinates) -> Float[Array, "..."]:
    x1, y1, x2, y2 = box
    return _unfused_product(jnp.maximum(x2 - x1, 0.0), y2 - y1)


def _unfused_product(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    # The maximum stands between the product and the next sum, so no compiler can fuse the two.
    return jnp.maximum(a * b, 0.0)
