"""Training targets of the RPN head (Ren et al. 2015, section 3.1.2): match, sample, encode."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from rpn_jax.config import Config, RPNLossConfig
from rpn_jax.ops import (
    anchor_validity,
    assign_anchors,
    encode_boxes,
    grid_anchors,
    sample_anchors,
)
from rpn_jax.ops.anchors import LevelShapes
from rpn_jax.ops.topk import top_k

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


class AnchorTargets(NamedTuple):
    """Training targets of the anchors of one picture, or of a batch."""

    positive: Bool[Array, "*B K"]
    """True for sampled anchors of an object."""
    negative: Bool[Array, "*B K"]
    """True for sampled anchors of background."""
    deltas: Float[Array, "*B K 4"]
    """float32 (dx, dy, dw, dh) to the anchor's box; zeros where not positive."""


def batch_targets(
    config: Config,
    level_shapes: LevelShapes,
    boxes_xyxy: Float[Array, "B G 4"],
    box_mask: Bool[Array, "B G"],
    image_sizes: Int[Array, "B 2"],
    rng: PRNGKeyArray,
    first: int | Int[Array, ""] = 0,
) -> AnchorTargets:
    """Return the `picture_targets` of every picture, with a leading axis B.

    The key of a picture is ``rng`` folded with its index in the batch. If the pictures are a part
    of a batch, ``first`` is the index of the first one.
    """
    anchors = jnp.concatenate(grid_anchors(level_shapes, config.model.rpn.anchors))
    valid = anchor_validity(level_shapes, config.model.rpn.anchors, image_sizes)
    if config.rpn_loss.inside_only:
        valid &= _lie_inside(anchors, image_sizes)
    rngs = jax.vmap(jax.random.fold_in, (None, 0))(rng, first + jnp.arange(len(image_sizes)))

    def one_picture(valid: Array, boxes: Array, mask: Array, rng: Array) -> AnchorTargets:
        return picture_targets(config.rpn_loss, anchors, valid, boxes, mask, rng)

    return jax.lax.stop_gradient(jax.vmap(one_picture)(valid, boxes_xyxy, box_mask, rngs))


def _lie_inside(anchors: Float[Array, "K 4"], image_sizes: Int[Array, "B 2"]) -> Bool[Array, "B K"]:
    ends_xy = image_sizes[:, None, ::-1]
    return jnp.all(anchors[:, :2] >= 0, axis=-1) & jnp.all(anchors[:, 2:] < ends_xy, axis=-1)


def picture_targets(
    config: RPNLossConfig,
    anchors: Float[Array, "K 4"],
    valid: Bool[Array, " K"],
    boxes_xyxy: Float[Array, "G 4"],
    box_mask: Bool[Array, " G"],
    rng: PRNGKeyArray,
) -> AnchorTargets:
    """Match the anchors of one picture to its boxes, sample anchors, and encode the boxes."""
    labels = assign_anchors(
        anchors,
        valid,
        boxes_xyxy,
        box_mask,
        config.positive_iou,
        config.negative_iou,
        config.min_positive_iou,
    )
    positive, negative = sample_anchors(
        labels, rng, config.samples_per_image, config.positive_fraction
    )
    # Other anchors use themselves as the target box, so their deltas are 0 and finite.
    rows = jnp.where(positive, labels, 0)
    matched = jnp.concatenate([jnp.zeros((1, 4)), boxes_xyxy])[rows]
    matched = jnp.where(positive[:, None], matched, anchors)
    return AnchorTargets(positive, negative, encode_boxes(anchors, matched))


def at_sampled_cells(
    targets: AnchorTargets, anchors_per_cell: int, samples: int
) -> tuple[Int[Array, "B S"], AnchorTargets]:
    """Return the cells of the sampled anchors, and the targets of the anchors in these cells.

    The loss and its gradient are 0 in all other cells, so the head need not compute them.

    Args:
      targets: targets of all anchors, with a leading axis B.
      anchors_per_cell: A.
      samples: most sampled anchors in a picture.

    Returns:
      cells: distinct flat indices of cells, int32, order level, row, column. S is ``samples``, or
        the number of cells if that is smaller. If fewer cells have samples, others fill the rest.
      targets: targets of their anchors, with K = S * A.
    """
    by_cell = jax.tree.map(lambda x: x.reshape(len(x), -1, anchors_per_cell, *x.shape[2:]), targets)
    holds_samples = jnp.any(by_cell.positive | by_cell.negative, axis=-1)
    _, cells = top_k(holds_samples.astype(jnp.float32), min(samples, holds_samples.shape[1]))
    pictures = jnp.arange(len(cells))[:, None]
    return cells, jax.tree.map(
        lambda x: x[pictures, cells].reshape(len(cells), -1, *x.shape[3:]), by_cell
    )
