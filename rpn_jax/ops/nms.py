"""Exact greedy non-maximum suppression with fixed shapes.

Boxes are visited from the best score down; each is kept unless its IoU with a kept one of its level
is above the threshold. Two forms give the same result: CPUs are fastest visiting the kept boxes one
by one, accelerators with a matrix of overlaps and a few parallel rounds.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rpn_jax.ops.boxes import elementwise_iou, split_coordinates
from rpn_jax.ops.topk import masked_top_k

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, UInt8

    Kept = tuple[Int[Array, "*batch count"], Bool[Array, "*batch count"]]
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
    count = scores.shape[-1]
    kept, found = nms_per_level(
        jnp.take_along_axis(boxes_xyxy, order[..., None], axis=-2)[..., None, :, :],
        jnp.take_along_axis(scores, order, axis=-1)[..., None, :],
        jnp.take_along_axis(valid, order, axis=-1)[..., None, :],
        iou_threshold,
        count,
    )
    places = jnp.where(found, jnp.take_along_axis(order, kept, axis=-1), count)
    nothing = jnp.zeros_like(valid)
    return jnp.put_along_axis(nothing, places, True, axis=-1, inplace=False, mode="drop")


def nms_per_level(
    boxes_xyxy: Float[Array, "*batch L N 4"],
    scores: Float[Array, "*batch L N"],
    valid: Bool[Array, "*batch L N"],
    iou_threshold: float,
    count: int,
) -> Kept:
    """The ``count`` best of the boxes that exact greedy NMS keeps of each level.

    Args:
      boxes_xyxy: pixels; the boxes of a level by descending score.
      scores: higher is better; the lower level comes first among equals, then the lower index.
      valid: True where a box exists.
      iou_threshold: a box is suppressed by a kept one of its level above (not at) this IoU.
      count: may exceed L N.

    Returns:
      The kept boxes, best first, as indices i32[*batch, count] into the L N boxes, and True where
      there was one; elsewhere the index is 0.
    """
    *batch, levels, length = scores.shape
    if not scores.size:
        return jnp.zeros((*batch, count), jnp.int32), jnp.zeros((*batch, count), bool)
    forms = {
        name: partial(form, iou_threshold=iou_threshold, count=count)
        for name, form in (("cpu", kept_one_by_one), ("default", kept_by_fixed_point))
    }
    indices, found = jax.lax.platform_dependent(
        boxes_xyxy.reshape(-1, levels, length, 4),
        scores.reshape(-1, levels, length),
        valid.reshape(-1, levels, length),
        **forms,
    )
    return indices.reshape(*batch, count), found.reshape(*batch, count)


def kept_one_by_one(
    boxes_xyxy: Float[Array, "S L N 4"],
    scores: Float[Array, "S L N"],
    valid: Bool[Array, "S L N"],
    iou_threshold: float,
    count: int,
) -> Kept:
    """The form for CPUs: visits only what it returns, the best of all levels first."""
    gone = valid.shape[-1]
    positions = jnp.arange(gone, dtype=jnp.int32)

    def one_set(
        args: tuple[Float[Array, "L N 4"], Float[Array, "L N"], Bool[Array, "L N"]],
    ) -> Kept:
        boxes_xyxy, scores, valid = args
        coordinates = split_coordinates(boxes_xyxy)
        levels = jnp.arange(len(valid))
        # A valid -inf must still come before a level that has no box left.
        finite = jnp.maximum(scores, jnp.finfo(scores.dtype).min)
        finite = jnp.pad(finite, ((0, 0), (0, 1)), constant_values=-jnp.inf)

        def box_remains(state: LoopState) -> Bool[Array, ""]:
            kept, best, _, _ = state
            return (kept < count) & jnp.any(best < gone)

        def keep_box(state: LoopState) -> LoopState:
            kept, best, remaining, indices = state
            level = jnp.argmax(finite[levels, best]).astype(jnp.int32)
            position = best[level]
            boxes = tuple(x[level] for x in coordinates)
            iou = elementwise_iou(tuple(x[position] for x in boxes), boxes)
            leaves = (iou > iou_threshold) | (positions == position)
            left = jnp.where(leaves, gone, remaining[level])
            return (
                kept + 1,
                best.at[level].set(jnp.min(left)),
                remaining.at[level].set(left),
                indices.at[kept].set(level * gone + position),
            )

        # `remaining` holds each unvisited box's own position, so its minimum is a level's best.
        remaining = jnp.where(valid, positions, gone)
        best = jnp.min(remaining, axis=-1)
        # 0, but made of what differs between devices, as `shard_map` asks of a loop's start.
        none = 0 * best[0]
        start = (none, best, remaining, jnp.full(count, none))
        kept, _, _, indices = jax.lax.while_loop(box_remains, keep_box, start)
        return indices, jnp.arange(count) < kept

    return jax.lax.map(one_set, (boxes_xyxy, scores, valid))


def kept_by_fixed_point(
    boxes_xyxy: Float[Array, "S L N 4"],
    scores: Float[Array, "S L N"],
    valid: Bool[Array, "S L N"],
    iou_threshold: float,
    count: int,
) -> Kept:
    """The form for accelerators: NMS of all levels at once, then the best of what is kept."""
    length = valid.shape[-1]
    keep = _fixed_point(boxes_xyxy.reshape(-1, length, 4), valid.reshape(-1, length), iou_threshold)
    flat = (len(scores), -1)
    _, indices, found = masked_top_k(scores.reshape(flat), keep.reshape(flat), count)
    return indices, found


def _fixed_point(
    boxes_xyxy: Float[Array, "S N 4"], valid: Bool[Array, "S N"], iou_threshold: float
) -> Bool[Array, "S N"]:
    """Which of the boxes of S sets, best first, are kept: rounds over a mask of [S, N, N] bits.

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

    return jax.lax.while_loop(changed, some_rounds, some_rounds((valid, valid)))[1][:, :count]


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
