"""Areas, overlaps and clipping of boxes.

Exact ties of the IoU decide training labels. The float32 operations are therefore in the same order
as in the reference, and no product may be fused with the next sum (a fused multiply-add).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from rpn_jax.ops.quotient import quotient

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

Coordinates = tuple["Float[Array, '...']", ...]
"""x1, y1, x2, y2 as four contiguous arrays. They vectorise better than one array [..., 4]."""

_SMALLEST_UNION = 1e-6  # pixels squared; the reference's floor, so that 0 / 0 is 0


def split_coordinates(boxes_xyxy: Float[Array, "*N 4"]) -> Coordinates:
    """Return the four coordinates of boxes, each a float32 array."""
    boxes_xyxy = jnp.asarray(boxes_xyxy, jnp.float32)
    return tuple(boxes_xyxy[..., k] for k in range(4))


def box_area(boxes_xyxy: Float[Array, "*N 4"]) -> Float[Array, "*N"]:
    """Return float32 areas in pixels squared; 0 for a box with negative width or height."""
    return _area(split_coordinates(boxes_xyxy))


def box_iou(
    a: Float[Array, "*batch N 4"], b: Float[Array, "*batch M 4"]
) -> Float[Array, "*batch N M"]:
    """Return the intersection over union (IoU) of every box of ``a`` with every box of ``b``.

    Boxes are xyxy pixels. The result is float32 in [0, 1], and 0 where a box has no area. It has
    the same bits as these operations in NumPy, also under jit.

    >>> a = jnp.array([[0.0, 0.0, 2.0, 2.0]])
    >>> b = jnp.array([[1.0, 0.0, 3.0, 2.0], [2.0, 0.0, 4.0, 2.0]])
    >>> print(box_iou(a, b))
    [[0.33333334 0.        ]]
    """
    rows = tuple(x[..., :, None] for x in split_coordinates(a))
    columns = tuple(x[..., None, :] for x in split_coordinates(b))
    return elementwise_iou(rows, columns)


def elementwise_iou(a: Coordinates, b: Coordinates) -> Float[Array, "..."]:
    """Return the IoU of boxes whose coordinates broadcast against each other."""
    return quotient(*_overlap_and_union(a, b))


def approximate_iou(a: Coordinates, b: Coordinates) -> Float[Array, "..."]:
    """Return `elementwise_iou` with the division of the platform, which is faster on GPUs.

    On CPUs it has the same bits.
    """
    overlap, union = _overlap_and_union(a, b)
    return overlap / union


def _overlap_and_union(
    a: Coordinates, b: Coordinates
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    width = jnp.minimum(a[2], b[2]) - jnp.maximum(a[0], b[0])
    height = jnp.minimum(a[3], b[3]) - jnp.maximum(a[1], b[1])
    overlap = _unfused_product(jnp.maximum(width, 0.0), jnp.maximum(height, 0.0))
    union = (_area(a) + _area(b)) - overlap
    return overlap, jnp.maximum(union, _SMALLEST_UNION)


def clip_boxes(
    boxes_xyxy: Float[Array, "*batch N 4"], image_sizes: Int[Array, "*batch 2"]
) -> Float[Array, "*batch N 4"]:
    """Clip boxes to the borders of their picture. The result is float32.

    Args:
      boxes_xyxy: pixels.
      image_sizes: (height, width) of each picture, pixels.

    >>> print(clip_boxes(jnp.array([[-3.0, 5.0, 90.0, 70.0]]), jnp.array([60, 80])))
    [[ 0.  5. 80. 60.]]
    """
    height, width = jnp.unstack(jnp.asarray(image_sizes), axis=-1)
    limits = jnp.stack([width, height, width, height], axis=-1).astype(jnp.float32)
    return jnp.clip(jnp.asarray(boxes_xyxy, jnp.float32), 0.0, limits[..., None, :])


def _area(box: Coordinates) -> Float[Array, "..."]:
    x1, y1, x2, y2 = box
    return _unfused_product(jnp.maximum(x2 - x1, 0.0), y2 - y1)


def _unfused_product(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    # The maximum separates the product from the next sum, so that no compiler can fuse them.
    return jnp.maximum(a * b, 0.0)
