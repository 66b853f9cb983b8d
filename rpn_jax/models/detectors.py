"""The whole network: pictures to objectness and deltas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from rpn_jax.config import CANVAS_MULTIPLE, Config, ModelConfig
from rpn_jax.models.fpn import FPN
from rpn_jax.models.resnet import ResNet
from rpn_jax.models.rpn.head import RPNHead
from rpn_jax.structures import RPNOutputs, Variables

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


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

    def setup(self) -> None:
        config = self.config
        self.backbone = ResNet(config.backbone, config.precision, self.axis_name, self.folded)
        if config.neck == "fpn":
            self.neck = FPN(config.neck_channels, config.precision)
        self.rpn_head = RPNHead(config.rpn.channels, config.rpn.anchors.per_cell, config.precision)

    def __call__(self, images: Float[Array, "B H W 3"], train: bool = False) -> RPNOutputs:
        """Objectness and deltas of every level.

        Args:
          images: normalised pictures, zeros as padding.
          train: batch norm takes this batch's statistics (and updates ``batch_stats``, which must
            then be mutable); other norms ignore it.
        """
        return self.outputs(self.features(images, train))

    def features(
        self, images: Float[Array, "B H W 3"], train: bool = False
    ) -> tuple[Float[Array, "B Hl Wl C"], ...]:
        """What the head sees, one array a level; arguments as of the whole."""
        stages: tuple[Array, ...] = self.backbone(images, train)
        return self.neck(stages) if self.config.neck == "fpn" else stages[-1:]

    def outputs(self, levels: tuple[Float[Array, "B Hl Wl C"], ...]) -> RPNOutputs:
        """Objectness and deltas of `features`."""
        return self.rpn_head(levels)

    def outputs_at(
        self, levels: tuple[Float[Array, "B Hl Wl C"], ...], cells: Int[Array, "B S"]
    ) -> RPNOutputs:
        """The same at some cells alone, as a single level with one row of them.

        Args:
          levels: as `features` gives them.
          cells: flat places, order level, row, column; those of a picture must be distinct.
        """
        return self.rpn_head.at_cells(levels, cells)


def init_variables(config: Config, seed: int = 0) -> Variables:
    """Random variables for training from scratch, the same for the same seed."""
    canvas = jnp.zeros((1, CANVAS_MULTIPLE, CANVAS_MULTIPLE, 3))
    init = jax.jit(RPN(config.model).init)
    return dict(init(jax.random.key(seed), canvas))


def variable_shapes(config: Config) -> Variables:
    """Shapes and dtypes of the variables, without computing any (`jax.ShapeDtypeStruct`)."""
    return jax.eval_shape(lambda: init_variables(config))
