"""Matching of anchors to ground-truth boxes (Ren et al. 2015, section 3.1.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rpn_jax.ops.boxes import elementwise_iou, split_coordinates
from rpn_jax.ops.checks import check_shapes

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

ABSENT = -2
"""Label of an anchor that does not exist for the picture."""
IGNORED = -1
"""Label of an anchor that is neither positive nor negative."""
NEGATIVE = 0
"""Label of background. An anchor of box k has the label k + 1."""

BOXES_PER_ROUND = 4
"""Boxes in one iteration of the loop. An iteration reads and writes the state of all anchors once,
and a GPU waits for the host after each."""
FOLDS = 8
"""Rows of the [rows, columns] array that holds K anchors. On CPUs, XLA splits work only over the
outermost axis, and one axis of K anchors takes 5 to 10 times as long."""


def assign_anchors(
    anchors: Float[Array, "K 4"],
    valid: Bool[Array, " K"],
    boxes_xyxy: Float[Array, "G 4"],
    box_mask: Bool[Array, " G"],
    positive_iou: float,
    negative_iou: float,
    min_positive_iou: float,
) -> Int[Array, " K"]:
    """Return the label of every anchor of one picture, as the reference's MaxIoUAssigner.

    An anchor is positive for its best box (the first among equals) from ``positive_iou``, and
    negative below ``negative_iou``. Then each box whose best IoU is at least ``min_positive_iou``
    is assigned every anchor with exactly that IoU. This happens in box order, so the last box wins.
    Comparisons are in float32, so that exact ties count. The loop ends at the last box that exists
    and needs O(K) memory.

    Args:
      anchors: xyxy pixels.
      valid: True where an anchor exists.
      boxes_xyxy: pixels. Boxes that are masked or have no area are ignored.
      box_mask: True where a box exists.
      positive_iou: lowest IoU of a positive anchor.
      negative_iou: negative anchors have a lower IoU.
      min_positive_iou: lowest best IoU of a box that is assigned its best anchors; above 0.

    Returns:
      int32 labels: -2 the anchor does not exist, -1 ignored, 0 negative, k > 0 positive for row
      k - 1 of the boxes.

    Raises:
      UserError: the arrays do not fit each other.
    """
    arguments = {
        "anchors": (anchors, "K 4"),
        "valid": (valid, "K"),
        "boxes_xyxy": (boxes_xyxy, "G 4"),
        "box_mask": (box_mask, "G"),
    }
    check_shapes("assign_anchors", arguments)
    anchor_coordinates = tuple(map(_fold, split_coordinates(anchors)))
    exists = _fold(valid)
    # The row added in front makes a box's row its label. The rows at the end fill the last round.
    padding = (1, -len(boxes_xyxy) % BOXES_PER_ROUND)
    box_coordinates = split_coordinates(jnp.pad(boxes_xyxy, (padding, (0, 0))))
    x1, y1, x2, y2 = box_coordinates
    takes_part = jnp.pad(box_mask, padding) & (x2 > x1) & (y2 > y1)
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
        for place in range(BOXES_PER_ROUND):
            state = match_box(1 + turn * BOXES_PER_ROUND + place, state)
        return state

    # Zeros, computed from inputs: `shard_map` requires a loop's initial state to vary over the same
    # mesh axes as its later states.
    nobody = (exists & takes_part[0]).astype(jnp.int32)
    start = (nobody.astype(jnp.float32), nobody, nobody)
    rounds = -(-last_label // BOXES_PER_ROUND)
    best_iou, best_box, taken_by = jax.lax.fori_loop(0, rounds, match_boxes, start)

    labels = jnp.where(best_iou < negative_iou, NEGATIVE, IGNORED)
    labels = jnp.where(best_iou >= positive_iou, best_box, labels)
    labels = jnp.where(taken_by > 0, taken_by, labels)
    labels = jnp.where(exists, labels, ABSENT).astype(jnp.int32)
    return labels.reshape(-1)[: len(anchors)]


def _fold(values: Array) -> Array:
    """Return [K] values as [FOLDS, ceil(K / FOLDS)], padded with zeros."""
    return jnp.pad(values, (0, -len(values) % FOLDS)).reshape(FOLDS, -1)
