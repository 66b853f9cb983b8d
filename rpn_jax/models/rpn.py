"""The whole network: pictures to objectness and deltas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from rpn_jax.config import CANVAS_MULTIPLE, Config, ModelConfig
from rpn_jax.models.fpn import FPN
from rpn_jax.models.resnet import ResNet
from rpn_jax.models.rpn_head import RPNHead
from rpn_jax.structures import RPNOutputs, Variables

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class RPN(nn.Module):
    """Region Proposal Network (Ren et al. 2015).

    ``model.apply(variables, images)`` takes normalised float32 pictures [B, H, W, 3] and returns
    `RPNOutputs`.
    """

    config: ModelConfig
    axis_name: str | None = None
    """The `pmap` axis over which batch norm shares its statistics, if any."""
    folded: bool = False
    """For inference: take the weights that `rpn_jax.models.folding.fold_norms` makes."""

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool = False) -> RPNOutputs:
        """Objectness and deltas of every level.

        Args:
          images: normalised pictures, zeros as padding.
          train: batch norm takes this batch's statistics (and updates ``batch_stats``, which must
            then be mutable); other norms ignore it.
        """
        config = self.config
        backbone = ResNet(
            config.backbone, config.precision, self.axis_name, self.folded, name="backbone"
        )
        features = backbone(images, train)
        if config.neck == "fpn":
            levels = FPN(config.neck_channels, config.precision, name="neck")(features)
        else:
            levels = features[-1:]
        head = RPNHead(
            config.head_channels, config.anchors.per_cell, config.precision, name="rpn_head"
        )
        return head(levels)


def init_variables(config: Config, seed: int = 0) -> Variables:
    """Random variables for training from scratch, the same for the same seed."""
    canvas = jnp.zeros((1, CANVAS_MULTIPLE, CANVAS_MULTIPLE, 3))
    init = jax.jit(RPN(config.model).init)
    return dict(init(jax.random.key(seed), canvas))


def variable_shapes(config: Config) -> Variables:
    """Shapes and dtypes of the variables, without computing any (`jax.ShapeDtypeStruct`)."""
    return jax.eval_shape(lambda: init_variables(config))
