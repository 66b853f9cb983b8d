"""Loss functions for the training step: a network and its losses as one function."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp

from rpn_jax.config import Config, replace
from rpn_jax.models import RPN, Detector, FasterRCNN
from rpn_jax.models.backbone import Backbone
from rpn_jax.models.means import Mean, share
from rpn_jax.models.resnet import ResNet
from rpn_jax.models.roi.loss import roi_loss_terms
from rpn_jax.models.roi.targets import roi_targets
from rpn_jax.models.rpn.loss import rpn_loss_terms
from rpn_jax.models.rpn.proposals import propose
from rpn_jax.models.rpn.targets import at_sampled_cells, batch_targets
from rpn_jax.ops.pixels import normalize_images
from rpn_jax.structures import Batch, Proposals, RoIOutputs, RPNOutputs, Variables
from rpn_jax.training.gradients import DEVICE_AXIS, LossFunction

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Levels = tuple[Float[Array, "B _ _ C"], ...]

DROPOUT = 2**31 - 1
"""Number that is folded into the key of a batch for dropout. No picture of a batch has it."""


def loss_function_of(config: Config) -> LossFunction:
    """Return the loss function of a config: the RPN's, or that of both stages if it has two."""
    of_detector = rpn_loss_function if config.model.roi is None else faster_rcnn_loss_function
    return of_detector(config)


def rpn_loss_function(config: Config, backbone: Backbone | None = None) -> LossFunction:
    """Return the loss function of an RPN, for `rpn_jax.training.step`.

    It returns the terms of `rpn_jax.rpn_loss`, and the share of positives in the sampled anchors.

    Args:
      config: the config of the model and its loss.
      backbone: the model's backbone. None: the one that ``config.model`` describes.
    """
    model = RPN(config.model, axis_name=DEVICE_AXIS, backbone=backbone)

    def loss_function(
        variables: Variables, batch: Batch, rng: jax.Array, first: int | jax.Array
    ) -> tuple[dict[str, Mean], Variables]:
        levels, variables = _features(model, config, variables, batch, rng, first)
        return _rpn_terms(model, config, variables, levels, batch, rng, first), variables

    return loss_function


def faster_rcnn_loss_function(config: Config, backbone: Backbone | None = None) -> LossFunction:
    """Return the loss function of a Faster R-CNN, for `rpn_jax.training.step`.

    Both stages are trained at the same time (Ren et al. 2015, section 3.2, "approximate joint
    training"): no gradient flows through the proposals. The function returns the terms of
    `rpn_jax.rpn_loss` and of `rpn_jax.roi_loss`, and the share of positives in the sampled anchors
    and boxes.

    Arguments are those of `rpn_loss_function`.
    """
    model = FasterRCNN(config.model, axis_name=DEVICE_AXIS, backbone=backbone)

    def loss_function(
        variables: Variables, batch: Batch, rng: jax.Array, first: int | jax.Array
    ) -> tuple[dict[str, Mean], Variables]:
        rpn_rng, roi_rng = jax.random.split(rng)
        levels, variables = _features(model, config, variables, batch, rng, first)
        rpn_terms = _rpn_terms(model, config, variables, levels, batch, rpn_rng, first)
        proposals = training_proposals(model, config, variables, levels, batch)
        targets = roi_targets(
            config,
            proposals.boxes,
            proposals.valid,
            batch.boxes_xyxy,
            batch.labels,
            batch.box_mask,
            roi_rng,
            first,
        )
        outputs = cast(
            RoIOutputs, model.apply(variables, levels, targets.boxes_xyxy, method="roi_outputs")
        )
        is_object = targets.labels < outputs.deltas.shape[-2]
        figures = {"positive_boxes": share(targets.sampled & is_object, targets.sampled)}
        return rpn_terms | figures | roi_loss_terms(outputs, targets), variables

    return loss_function


def training_proposals(
    model: FasterRCNN, config: Config, variables: Variables, levels: Levels, batch: Batch
) -> Proposals:
    """Return the proposals that the second stage is trained on, in resized pixels.

    They need the first stage's outputs at all cells, without gradient.
    """
    settings = replace(
        config.rpn_proposals,
        nms_pre=config.roi_loss.nms_pre,
        max_proposals=config.roi_loss.max_proposals,
    )
    fixed = jax.lax.stop_gradient((variables, levels))
    outputs = model.apply(*fixed, method="rpn_outputs")
    return propose(
        replace(config, rpn_proposals=settings), cast(RPNOutputs, outputs), batch.image_sizes
    )


def _features(
    model: Detector,
    config: Config,
    variables: Variables,
    batch: Batch,
    rng: jax.Array,
    first: int | jax.Array,
) -> tuple[Levels, Variables]:
    """Return the levels of a batch, and the variables with updated statistics."""
    images = normalize_images(batch.images, batch.image_sizes, config.pixels)
    key = jax.random.fold_in(jax.random.fold_in(rng, DROPOUT), first)
    levels, updates = model.apply(
        variables,
        images,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": key},
        method="features",
    )
    if not isinstance(model.backbone, ResNet):
        # A batch norm of the user may update its statistics from the pictures of one device only.
        updates = jax.tree.map(_mean_over_devices, updates)
    return cast("Levels", levels), {**variables, **updates}


def _mean_over_devices(statistic: jax.Array) -> jax.Array:
    is_float = jnp.issubdtype(statistic.dtype, jnp.floating)
    return jax.lax.pmean(statistic, DEVICE_AXIS) if is_float else statistic


def _rpn_terms(
    model: Detector,
    config: Config,
    variables: Variables,
    levels: Levels,
    batch: Batch,
    rng: jax.Array,
    first: int | jax.Array,
) -> dict[str, Mean]:
    """Return the terms of the first stage's loss.

    The sampling does not depend on the head's outputs, so the head computes outputs only at the
    cells of sampled anchors.
    """
    samples = config.rpn_loss.samples_per_image
    level_shapes = [(level.shape[1], level.shape[2]) for level in levels]
    targets = batch_targets(
        config, level_shapes, batch.boxes_xyxy, batch.box_mask, batch.image_sizes, rng, first
    )
    if samples == 0:  # All anchors are sampled, so the outputs of all cells are needed.
        outputs = model.apply(variables, levels, method="rpn_outputs")
    else:
        cells, targets = at_sampled_cells(targets, config.model.rpn.anchors.per_cell, samples)
        outputs = model.apply(variables, levels, cells, method="rpn_outputs_at")
    figures = {"positive_anchors": share(targets.positive, targets.positive | targets.negative)}
    return figures | rpn_loss_terms(cast(RPNOutputs, outputs), targets)
