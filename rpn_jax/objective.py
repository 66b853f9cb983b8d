"""What training minimises: where the network meets its losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rpn_jax.losses import rpn_loss
from rpn_jax.models import RPN
from rpn_jax.ops.pixels import normalize_images
from rpn_jax.structures import Batch, Variables
from rpn_jax.training import DEVICE_AXIS, LossFunction, Metrics

if TYPE_CHECKING:
    import jax

    from rpn_jax.config import Config


def rpn_loss_function(config: Config) -> LossFunction:
    """The loss of an RPN on a device's batch, for `rpn_jax.training`."""
    model = RPN(config.model, axis_name=DEVICE_AXIS)

    def loss_function(
        variables: Variables, batch: Batch, rng: jax.Array
    ) -> tuple[Metrics, Variables]:
        images = normalize_images(batch.images, batch.image_sizes, config.pixels)
        outputs, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        terms = rpn_loss(
            config,
            outputs,
            batch.boxes_xyxy,
            batch.box_mask,
            batch.image_sizes,
            rng,
            axis_name=DEVICE_AXIS,
        )
        return terms, {**variables, **updates}

    return loss_function
