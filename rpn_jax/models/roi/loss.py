"""The loss of the second stage (Girshick 2015, section 2.3; Ren et al. 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rpn_jax.models.means import Mean, divide, divisors_of
from rpn_jax.models.roi.targets import RoITargets
from rpn_jax.ops.checks import check_shapes
from rpn_jax.structures import RoIOutputs

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def roi_loss(
    outputs: RoIOutputs, targets: RoITargets, axis_name: str | None = None
) -> dict[str, Float[Array, ""]]:
    """Return softmax cross-entropy and L1 of the sampled boxes, divided by their number.

    The L1 sums the deltas of a positive box's class. It is divided by the number of all sampled
    boxes, as in the reference, and is 0 without positives. Both terms are 0 without samples.

    Args:
      outputs: outputs of the head for ``targets.boxes_xyxy``. The loss is float32.
      targets: what `rpn_jax.models.roi.targets.roi_targets` returned.
      axis_name: mapped axis of the devices, if any. The number of samples is averaged over it, so
        that the mean of the devices' losses is the loss of the global batch.

    Returns:
      ``loss_cls`` and ``loss_bbox``, float32 scalars.

    Raises:
      UserError: the outputs are not of the boxes of the targets.
    """
    arguments = {
        "outputs.deltas": (outputs.deltas, "B S C 4"),
        "outputs.class_logits": (outputs.class_logits, "B S _"),
        "targets.labels": (targets.labels, "B S"),
    }
    check_shapes("roi_loss", arguments)
    terms = roi_loss_terms(outputs, targets)
    return divide(terms, divisors_of(terms, axis_name))


def roi_loss_terms(outputs: RoIOutputs, targets: RoITargets) -> dict[str, Mean]:
    """Return the terms of `roi_loss`."""
    samples = jnp.sum(targets.sampled).astype(jnp.float32)
    logits = outputs.class_logits.astype(jnp.float32)
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    cross_entropy = -_pick(log_probabilities[..., None], targets.labels)[..., 0]

    classes = outputs.deltas.shape[-2]
    is_positive = targets.sampled & (targets.labels < classes)
    deltas = _pick(outputs.deltas.astype(jnp.float32), jnp.minimum(targets.labels, classes - 1))
    errors = jnp.abs(deltas - targets.deltas)
    return {
        "loss_cls": Mean(jnp.sum(jnp.where(targets.sampled, cross_entropy, 0.0)), samples),
        "loss_bbox": Mean(jnp.sum(jnp.where(is_positive[..., None], errors, 0.0)), samples),
    }


def class_accuracy(outputs: RoIOutputs, targets: RoITargets) -> Float[Array, ""]:
    """Return the percentage of sampled boxes, background included, whose best class is right."""
    is_right = jnp.argmax(outputs.class_logits, axis=-1) == targets.labels
    right = jnp.sum(is_right & targets.sampled).astype(jnp.float32)
    samples = jnp.maximum(jnp.sum(targets.sampled), 1).astype(jnp.float32)
    return 100.0 * right / samples


def _pick(values: Float[Array, "B S K n"], labels: Array) -> Float[Array, "B S n"]:
    """Return the values of each box's class."""
    return jnp.take_along_axis(values, labels[..., None, None], axis=2)[:, :, 0]
