"""The two loss terms of an RPN (Ren et al. 2015, section 3.1.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rpn_jax.config import Config, check_part
from rpn_jax.models.means import Mean, divide, divisors_of
from rpn_jax.models.rpn.checks import check_outputs
from rpn_jax.models.rpn.targets import AnchorTargets, batch_targets
from rpn_jax.structures import RPNOutputs

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


def rpn_loss(
    config: Config,
    outputs: RPNOutputs,
    boxes_xyxy: Float[Array, "B G 4"],
    box_mask: Bool[Array, "B G"],
    image_sizes: Int[Array, "B 2"],
    rng: PRNGKeyArray,
    axis_name: str | None = None,
) -> dict[str, Float[Array, ""]]:
    """Return sigmoid cross-entropy and L1 of the sampled anchors, divided by their number.

    As in the reference, a picture without positives adds 1 to this number, and one without
    negatives too. So the number is never 0.

    Args:
      config: ``config.model.rpn.anchors`` and ``config.rpn_loss`` are used.
      outputs: outputs of the network, of any float dtype. The loss is float32.
      boxes_xyxy: ground truth, resized pixels.
      box_mask: True where a box exists.
      image_sizes: (height, width) of each resized picture before padding.
      rng: random key of the sampling, folded with each picture's index in the batch.
      axis_name: mapped axis of the devices, if any. The number of samples is averaged over it, so
        that the mean of the devices' losses is the loss of the global batch.

    Returns:
      ``loss_rpn_cls`` and ``loss_rpn_bbox``, float32 scalars.

    Raises:
      UserError: the number of levels differs from that of the config's strides, arrays do not fit
        each other, or ``config`` is only a part of a config.
    """
    check_part(config, Config)
    others = {
        "boxes_xyxy": (boxes_xyxy, "B G 4"),
        "box_mask": (box_mask, "B G"),
        "image_sizes": (image_sizes, "B 2"),
    }
    check_outputs("rpn_loss", config, outputs, others)
    targets = batch_targets(config, outputs.level_shapes, boxes_xyxy, box_mask, image_sizes, rng)
    terms = rpn_loss_terms(outputs, targets)
    return divide(terms, divisors_of(terms, axis_name))


def rpn_loss_terms(outputs: RPNOutputs, targets: AnchorTargets) -> dict[str, Mean]:
    """Return the terms of `rpn_loss`, for targets in the same order as the outputs."""
    samples = jnp.sum(_counted(targets.positive) + _counted(targets.negative))
    samples = samples.astype(jnp.float32)
    logits = _flatten_levels(outputs.objectness, ())
    # The cross-entropy of a logit x is softplus(x) against 0 and softplus(-x) against 1.
    cross_entropy = jax.nn.softplus(jnp.where(targets.positive, -logits, logits))
    sampled = targets.positive | targets.negative
    errors = jnp.abs(_flatten_levels(outputs.deltas, (4,)) - targets.deltas)
    return {
        "loss_rpn_cls": Mean(_masked_sum(cross_entropy, sampled), samples),
        "loss_rpn_bbox": Mean(_masked_sum(errors, targets.positive[..., None]), samples),
    }


def _counted(mask: Bool[Array, "B K"]) -> Int[Array, " B"]:
    return jnp.maximum(jnp.sum(mask, axis=-1), 1)


def _flatten_levels(
    levels: tuple[Float[Array, "B _ _ A *rest"], ...], rest: tuple[int, ...]
) -> Float[Array, "B K *rest"]:
    flat = [level.reshape(len(level), -1, *rest) for level in levels]
    return jnp.concatenate(flat, axis=1).astype(jnp.float32)


def _masked_sum(values: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
    return jnp.sum(jnp.where(mask, values, 0.0))
