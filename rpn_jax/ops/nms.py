"""Exact greedy non-maximum suppression with fixed shapes.

Boxes are visited from the best score down; each is kept unless its IoU with a kept one is above the
threshold. Two forms give the same result: CPUs are fastest visiting the kept boxes one by one,
accelerators with a matrix of overlaps and a few parallel rounds.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rpn_jax.ops.boxes import elementwise_iou, split_coordinates

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, UInt8

    LoopState = tuple[Array, Array, Array, Array]

BITS = 8
"""Bits of a word of the mask: overlaps that a GPU's thread computes one after the other. With more
of them XLA splits the work over several kernels, with memory in between."""
ROUNDS_PER_CHECK = 3
"""Rounds between two looks at whether anything still changes: a look makes a GPU wait for its host,
and costs more than a round."""


def nms(
    boxes_xyxy: Float[Array, "*batch N 4"],
    scores: Float[Array, "*batch N"],
    valid: Bool[Array, "*batch N"],
    iou_threshold: float,
) -> Bool[Array, "*batch N"]:
    """Exact greedy NMS of each set of boxes.

    Args:
      boxes_xyxy: pixels.
      scores: higher is better; the lower index is visited first among equals.
      valid: True where a box exists.
      iou_threshold: a box is suppressed by a kept one above (not at) this IoU.

    Returns:
      bool[*batch, N], True where a box is kept.
    """
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), axis=-1, stable=True)
    keep = nms_sorted(
        jnp.take_along_axis(boxes_xyxy, order[..., None], axis=-2),
        jnp.take_along_axis(valid, order, axis=-1),
        iou_threshold,
        max_kept=scores.shape[-1],
    )
    return jnp.take_along_axis(keep, jnp.argsort(order, axis=-1), axis=-1)


def nms_sorted(
    boxes_xyxy: Float[Array, "*batch N 4"],
    valid: Bool[Array, "*batch N"],
    iou_threshold: float,
    max_kept: int,
) -> Bool[Array, "*batch N"]:
    """`nms` of boxes that are sorted already, best first; keeps the ``max_kept`` best of a set."""
    *batch, count, _ = boxes_xyxy.shape
    forms = {
        name: partial(form, iou_threshold=iou_threshold, max_kept=max_kept)
        for name, form in (("cpu", keep_one_by_one), ("default", keep_by_fixed_point))
    }
    keep = jax.lax.platform_dependent(
        boxes_xyxy.reshape(-1, count, 4), valid.reshape(-1, count), **forms
    )
    return keep.reshape(*batch, count)


def keep_one_by_one(
    boxes_xyxy: Float[Array, "S N 4"],
    valid: Bool[Array, "S N"],
    iou_threshold: float,
    max_kept: int,
) -> Bool[Array, "S N"]:
    """The form for CPUs: visits only boxes that are kept, and ends with the last of them."""

    def one_set(
        args: tuple[Float[Array, "N 4"], Bool[Array, " N"]],
    ) -> Bool[Array, " N"]:
        boxes_xyxy, valid = args
        coordinates = split_coordinates(boxes_xyxy)
        positions = jnp.arange(len(valid), dtype=jnp.int32)
        gone = len(valid)

        def kept_box_remains(state: LoopState) -> Bool[Array, ""]:
            position, _, _, kept = state
            return (position < gone) & (kept < max_kept)

        def keep_box(state: LoopState) -> LoopState:
            position, remaining, keep, kept = state
            iou = elementwise_iou(tuple(x[position] for x in coordinates), coordinates)
            leaves = (iou > iou_threshold) | (positions == position)
            remaining = jnp.where(leaves, gone, remaining)
            return jnp.min(remaining), remaining, keep.at[position].set(True), kept + 1

        # `remaining` holds each unvisited box's own position, so its minimum is the next to keep.
        remaining = jnp.where(valid, positions, gone)
        start = (jnp.min(remaining), remaining, jnp.zeros_like(valid), jnp.int32(0))
        return jax.lax.while_loop(kept_box_remains, keep_box, start)[2]

    return jax.lax.map(one_set, (boxes_xyxy, valid))


def keep_by_fixed_point(
    boxes_xyxy: Float[Array, "S N 4"],
    valid: Bool[Array, "S N"],
    iou_threshold: float,
    max_kept: int,
) -> Bool[Array, "S N"]:
    """The form for accelerators: all sets at once, a few rounds over a mask of [S, N, N] bits.

    A round keeps a box unless a better one that is kept overlaps it. The first r boxes are right
    after r rounds, so the fixed point is the greedy result; real boxes need 3 to 8 rounds.
    """
    count = valid.shape[-1]
    behind = -count % BITS  # no boxes, but bits that fill up the last word
    boxes_xyxy = jnp.pad(boxes_xyxy, ((0, 0), (0, behind), (0, 0)))
    valid = jnp.pad(valid, ((0, 0), (0, behind)))
    suppressors = _suppressors(boxes_xyxy, iou_threshold)

    def one_round(keep: Bool[Array, "S M"]) -> Bool[Array, "S M"]:
        kept_suppressors = suppressors & _pack(keep)[..., None]
        return valid & ~jnp.any(kept_suppressors != 0, axis=1)

    def changed(state: tuple[Array, Array]) -> Bool[Array, ""]:
        return jnp.any(state[0] != state[1])

    def some_rounds(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep = state[1]
        for _ in range(ROUNDS_PER_CHECK):
            before, keep = keep, one_round(keep)
        return before, keep

    keep = jax.lax.while_loop(changed, some_rounds, some_rounds((valid, valid)))[1]
    return (keep & (jnp.cumsum(keep, axis=-1) <= max_kept))[:, :count]


def _suppressors(
    boxes_xyxy: Float[Array, "S M 4"], iou_threshold: float
) -> UInt8[Array, "S words M"]:
    """For each box a bit for every box: whether that one is better and overlaps it."""
    coordinates = split_coordinates(boxes_xyxy)
    boxes = tuple(x[:, None, :] for x in coordinates)
    positions = jnp.arange(boxes_xyxy.shape[1], dtype=jnp.int32)
    words = jnp.uint8(0)
    for bit in range(BITS):
        others = tuple(x[:, bit::BITS, None] for x in coordinates)
        better = positions[bit::BITS, None] < positions
        overlaps = elementwise_iou(others, boxes) > iou_threshold
        words |= jnp.where(overlaps & better, jnp.uint8(1 << bit), jnp.uint8(0))
    return words


def _pack(bits: Bool[Array, "S M"]) -> UInt8[Array, "S words"]:
    """Each 8 entries as the bits of one word."""
    places = jnp.uint8(1) << jnp.arange(BITS, dtype=jnp.uint8)
    words = bits.reshape(len(bits), -1, BITS)
    return jnp.sum(jnp.where(words, places, 0), axis=-1, dtype=jnp.uint8)
