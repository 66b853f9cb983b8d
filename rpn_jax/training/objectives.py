"""Loss functions for the training step: a network and its losses as one function."""

from __future__ import annotations

from typing import cast

import jax

from rpn_jax.config import Config
from rpn_jax.models import RPN
from rpn_jax.models.backbone import Backbone
from rpn_jax.models.rpn.loss import loss_terms
from rpn_jax.models.rpn.targets import at_sampled_cells, batch_targets
from rpn_jax.ops.pixels import normalize_images
from rpn_jax.structures import Batch, RPNOutputs, Variables
from rpn_jax.training.step import DEVICE_AXIS, LossFunction, Metrics


def rpn_loss_function(config: Config, backbone: Backbone | None = None) -> LossFunction:
    """Return the loss function of an RPN, for `rpn_jax.training.step`.

    It returns the terms of `rpn_jax.rpn_loss`. The sampling does not depend on the head's outputs,
    so the head computes outputs only at the cells of sampled anchors.

    Args:
      config: the config of the model and its loss.
      backbone: the model's backbone. None: the ResNet of ``config.model.backbone``.
    """
    model = RPN(config.model, axis_name=DEVICE_AXIS, backbone=backbone)
    samples = config.rpn_loss.samples_per_image

    def loss_function(
        variables: Variables, batch: Batch, rng: jax.Array
    ) -> tuple[Metrics, Variables]:
        images = normalize_images(batch.images, batch.image_sizes, config.pixels)
        levels, updates = model.apply(
            variables, images, train=True, mutable=["batch_stats"], method="features"
        )
        level_shapes = [(level.shape[1], level.shape[2]) for level in levels]
        targets = batch_targets(
            config, level_shapes, batch.boxes_xyxy, batch.box_mask, batch.image_sizes, rng
        )
        if samples == 0:  # All anchors are sampled, so the outputs of all cells are needed.
            outputs = model.apply(variables, levels, method="rpn_outputs")
        else:
            cells, targets = at_sampled_cells(targets, config.model.rpn.anchors.per_cell, samples)
            outputs = model.apply(variables, levels, cells, method="rpn_outputs_at")
        return loss_terms(cast(RPNOutputs, outputs), targets, DEVICE_AXIS), {
            **variables,
            **updates,
        }

    return loss_function
