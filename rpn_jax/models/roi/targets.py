"""Training targets of the second stage (Girshick 2015, section 2.3): match, sample, encode."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from rpn_jax.config import Config, RoILossConfig, check_part
from rpn_jax.errors import UserError
from rpn_jax.models.roi import DELTA_STDS
from rpn_jax.ops import assign_anchors, box_area, encode_boxes, masked_top_k, sample_anchors
from rpn_jax.ops.assign import ABSENT, NEGATIVE
from rpn_jax.ops.checks import check_shapes

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

NEVER = 2.0
"""An IoU that no pair of boxes reaches."""


class RoITargets(NamedTuple):
    """Sampled boxes of one picture, or of a batch, and what the head must return for them."""

    boxes_xyxy: Float[Array, "*B S 4"]
    """float32 resized pixels: positives first, then background; zeros where not sampled."""
    sampled: Bool[Array, "*B S"]
    """True where a box is sampled."""
    labels: Int[Array, "*B S"]
    """int32 class of each box; the number of classes for background, and where not sampled."""
    deltas: Float[Array, "*B S 4"]
    """float32 deltas to the box's object, divided by `DELTA_STDS`; zeros where not positive."""


def roi_targets(
    config: Config,
    proposals_xyxy: Float[Array, "B N 4"],
    proposal_mask: Bool[Array, "B N"],
    boxes_xyxy: Float[Array, "B G 4"],
    labels: Int[Array, "B G"],
    box_mask: Bool[Array, "B G"],
    rng: PRNGKeyArray,
    first: int | Int[Array, ""] = 0,
) -> RoITargets:
    """Match proposals to objects, add the objects as proposals, and sample.

    As in the reference, an object is added after the matching. So it changes no match and is
    positive for itself. Without any object, or if G is 0, all proposals are background.

    Args:
      config: ``config.roi_loss`` and the number of classes are used.
      proposals_xyxy: proposals of the RPN, resized pixels.
      proposal_mask: True where a proposal exists.
      boxes_xyxy: ground truth, resized pixels.
      labels: class of each object, from 0 and below the number of classes C. Others train as C,
        the background, or make the loss NaN: they cannot be checked inside jit.
      box_mask: True where an object exists. Objects without area are ignored.
      rng: random key of the sampling, folded with each picture's index in the batch.
      first: index of the first picture, if the pictures are a part of a batch.

    Returns:
      Targets without gradient. S is ``samples_per_image``, or G + N if that is smaller or if all
      boxes are used.

    Raises:
      UserError: arrays do not fit each other, or ``config`` is only a part of a config or has no
        second stage.
    """
    check_part(config, Config)
    if config.model.roi is None:
        raise UserError("config: model.roi is None, but the targets are those of a second stage")
    arguments = {
        "proposals_xyxy": (proposals_xyxy, "B N 4"),
        "proposal_mask": (proposal_mask, "B N"),
        "boxes_xyxy": (boxes_xyxy, "B G 4"),
        "labels": (labels, "B G"),
        "box_mask": (box_mask, "B G"),
    }
    check_shapes("roi_targets", arguments)
    num_classes = config.model.roi.num_classes
    if not box_mask.shape[1]:  # A masked object, because no row can be taken from an empty array.
        boxes_xyxy, labels, box_mask = (
            jnp.pad(array, [(0, 0), (0, 1), *[(0, 0)] * (array.ndim - 2)])
            for array in (boxes_xyxy, labels, box_mask)
        )
    rngs = jax.vmap(jax.random.fold_in, (None, 0))(rng, first + jnp.arange(len(box_mask)))

    def one_picture(*arrays: Array) -> RoITargets:
        return _picture_targets(config.roi_loss, num_classes, *arrays)

    return jax.lax.stop_gradient(
        jax.vmap(one_picture)(proposals_xyxy, proposal_mask, boxes_xyxy, labels, box_mask, rngs)
    )


def match_proposals(
    settings: RoILossConfig,
    proposals_xyxy: Float[Array, "N 4"],
    proposal_mask: Bool[Array, " N"],
    boxes_xyxy: Float[Array, "G 4"],
    box_mask: Bool[Array, " G"],
) -> Int[Array, " N"]:
    """Return for each proposal of a picture 0 for background, k for object k - 1, -2 if masked."""
    threshold = settings.positive_iou
    return assign_anchors(
        proposals_xyxy, proposal_mask, boxes_xyxy, box_mask, threshold, threshold, NEVER
    )


def _picture_targets(
    settings: RoILossConfig,
    num_classes: int,
    proposals_xyxy: Float[Array, "N 4"],
    proposal_mask: Bool[Array, " N"],
    boxes_xyxy: Float[Array, "G 4"],
    labels: Int[Array, " G"],
    box_mask: Bool[Array, " G"],
    rng: PRNGKeyArray,
) -> RoITargets:
    # A box without area cannot be encoded, and `assign_anchors` ignores it too.
    box_mask = box_mask & (box_area(boxes_xyxy) > 0)
    objects = jnp.arange(1, len(labels) + 1, dtype=jnp.int32)
    assigned = jnp.concatenate(
        [
            jnp.where(box_mask, objects, ABSENT),
            match_proposals(settings, proposals_xyxy, proposal_mask, boxes_xyxy, box_mask),
        ]
    )
    candidates = jnp.concatenate([boxes_xyxy, proposals_xyxy])
    samples = settings.samples_per_image or len(assigned)
    positive, negative = sample_anchors(
        assigned, rng, settings.samples_per_image, settings.positive_fraction
    )
    # Positives before negatives, both in ascending order: `masked_top_k` keeps the order of equals.
    _, chosen, sampled = masked_top_k(
        positive.astype(jnp.float32), positive | negative, min(samples, len(assigned))
    )
    assigned = jnp.where(sampled, assigned[chosen], NEGATIVE)
    is_positive = assigned > NEGATIVE
    boxes = jnp.where(sampled[:, None], candidates[chosen], 0.0)
    row = jnp.maximum(assigned - 1, 0)
    # Other boxes use a unit box as both ends, so their deltas are 0 and finite.
    unit = jnp.array([0.0, 0.0, 1.0, 1.0])
    start = jnp.where(is_positive[:, None], boxes, unit)
    end = jnp.where(is_positive[:, None], boxes_xyxy[row], unit)
    return RoITargets(
        boxes_xyxy=boxes,
        sampled=sampled,
        labels=jnp.where(is_positive, labels[row], num_classes),
        deltas=encode_boxes(start, end) / jnp.array(DELTA_STDS, jnp.float32),
    )
