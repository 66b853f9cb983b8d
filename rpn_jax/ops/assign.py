"""Matching of anchors with ground-truth boxes (Ren et al. 2015, section 3.1.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rpn_jax.ops.boxes import elementwise_iou, split_coordinates

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

ABSENT = -2
"""Label of an anchor that does not exist for the picture."""
IGNORED = -1
"""Label of an anchor that is neither positive nor negative."""
NEGATIVE = 0
"""Label of background; k > 0 is the label of box k - 1."""

BOXES_A_ROUND = 4
"""Boxes that a round of the loop handles: the anchors' state is read and written once a round, and
after every round a GPU waits for its host."""
FOLDS = 8
"""Rows that one axis of K anchors is folded into: XLA on CPUs shares work over the outermost axis
only, and takes five to ten times as long for one long axis."""


def assign_anchors(
    anchors: Float[Array, "K 4"],
    valid: Bool[Array, " K"],
    boxes_xyxy: Float[Array, "G 4"],
    box_mask: Bool[Array, " G"],
    positive_iou: float,
    negative_iou: float,
    min_positive_iou: float,
) -> Int[Array, " K"]:
    """Label every anchor of one picture; all tests are in float32 and exact ties count.

    An anchor is positive for its best box (the first of equals) from ``positive_iou`` and negative
    below ``negative_iou``. Then each box whose best IoU is at least ``min_positive_iou`` takes
    every anchor with exactly that IoU, in box order: the last box wins. Same as the reference's
    MaxIoUAssigner. The loop ends at the last box that exists and holds O(K) memory.

    Args:
      anchors: xyxy pixels.
      valid: True where an anchor exists.
      boxes_xyxy: pixels; boxes that are masked or have no area take no part.
      box_mask: True where a box exists.
      positive_iou: lowest IoU of a positive.
      negative_iou: IoU that negatives stay below.
      min_positive_iou: lowest best IoU with which a box takes its best anchors; above 0.

    Returns:
      i32[K]: -2 no such anchor, -1 ignored, 0 negative, k positive for row k - 1 of the boxes.
    """
    anchor_coordinates = tuple(map(_fold, split_coordinates(anchors)))
    exists = _fold(valid)
    # A row in front makes a box's row its label; rows behind fill up the last round.
    around = (1, -len(boxes_xyxy) % BOXES_A_ROUND)
    box_coordinates = split_coordinates(jnp.pad(boxes_xyxy, (around, (0, 0))))
    x1, y1, x2, y2 = box_coordinates
    takes_part = jnp.pad(box_mask, around) & (x2 > x1) & (y2 > y1)
    last_label = jnp.max(jnp.where(takes_part, jnp.arange(len(takes_part)), 0))

    def match_box(
        label: Int[Array, ""], state: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        best_iou, best_box, taken_by = state
        iou = elementwise_iou(tuple(x[label] for x in box_coordinates), anchor_coordinates)
        iou = jnp.where(exists & takes_part[label], iou, -1.0)
        highest = jnp.max(iou, initial=-1.0)
        takes = (iou == highest) & (highest >= min_positive_iou)
        return (
            jnp.maximum(best_iou, iou),
            jnp.where(iou > best_iou, label, best_box),
            jnp.where(takes, label, taken_by),
        )

    def match_boxes(
        turn: Int[Array, ""], state: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        for place in range(BOXES_A_ROUND):
            state = match_box(1 + turn * BOXES_A_ROUND + place, state)
        return state

    # Zeros, but made of what differs between devices, as `shard_map` asks of a loop's start.
    nobody = (exists & takes_part[0]).astype(jnp.int32)
    start = (nobody.astype(jnp.float32), nobody, nobody)
    rounds = -(-last_label // BOXES_A_ROUND)
    best_iou, best_box, taken_by = jax.lax.fori_loop(0, rounds, match_boxes, start)

    labels = jnp.where(best_iou < negative_iou, NEGATIVE, IGNORED)
    labels = jnp.where(best_iou >= positive_iou, best_box, labels)
    labels = jnp.where(taken_by > 0, taken_by, labels)
    labels = jnp.where(exists, labels, ABSENT).astype(jnp.int32)
    return labels.reshape(-1)[: len(anchors)]


def _fold(values: Array) -> Array:
    """[K] as [folds, ceil(K / folds)], padded with zeros."""
    return jnp.pad(values, (0, -len(values) % FOLDS)).reshape(FOLDS, -1)
