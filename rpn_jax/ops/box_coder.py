"""Boxes as offsets from anchors (Girshick et al. 2014, appendix C; means 0, standard deviations 1).

dx = (x - xa) / wa and dw = log(w / wa). Here x and w are the centre and the width of the box, and
xa and wa those of the anchor. dy and dh use heights.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

MAX_LOG_SCALE = abs(math.log(16 / 1000))
"""Decoding clamps |dw| and |dh| to this, so that exp cannot overflow (reference behaviour)."""


def encode_boxes(
    anchors: Float[Array, "*#N 4"], boxes_xyxy: Float[Array, "*#N 4"]
) -> Float[Array, "*#N 4"]:
    """Return the float32 deltas (dx, dy, dw, dh) that `decode_boxes` turns back into the boxes.

    Anchors and boxes are xyxy pixels. Both must have an area. Otherwise dw or dh is infinite.
    Leading axes broadcast.

    >>> anchors = jnp.array([[0.0, 0.0, 10.0, 20.0]])
    >>> print(encode_boxes(anchors, jnp.array([[5.0, 0.0, 15.0, 20.0]])))
    [[0.5 0.  0.  0. ]]
    """
    anchor_centres, anchor_sizes = _centres_and_sizes(anchors)
    centres, sizes = _centres_and_sizes(boxes_xyxy)
    shifts = (centres - anchor_centres) / anchor_sizes
    return jnp.concatenate([shifts, jnp.log(sizes / anchor_sizes)], axis=-1)


def decode_boxes(
    anchors: Float[Array, "*#N 4"], deltas: Float[Array, "*#N 4"]
) -> Float[Array, "*#N 4"]:
    """Return boxes, float32 xyxy pixels, from anchors (xyxy pixels) and deltas, without clipping.

    Leading axes broadcast. |dw| and |dh| are clamped to ln(1000 / 16), so a side is at most 62.5
    times the anchor's.
    """
    deltas = jnp.asarray(deltas, jnp.float32)
    anchor_centres, anchor_sizes = _centres_and_sizes(anchors)
    centres = anchor_centres + anchor_sizes * deltas[..., :2]
    sizes = anchor_sizes * jnp.exp(jnp.clip(deltas[..., 2:], -MAX_LOG_SCALE, MAX_LOG_SCALE))
    return jnp.concatenate([centres - 0.5 * sizes, centres + 0.5 * sizes], axis=-1)


def _centres_and_sizes(
    boxes_xyxy: Float[Array, "*N 4"],
) -> tuple[Float[Array, "*N 2"], Float[Array, "*N 2"]]:
    boxes_xyxy = jnp.asarray(boxes_xyxy, jnp.float32)
    first, second = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return (first + second) * 0.5, second - first
