"""The head of a Region Proposal Network (Ren et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp

from rpn_jax.config import Precision
from rpn_jax.models.layers import ConvWeights
from rpn_jax.ops.activations import relu
from rpn_jax.ops.convolution import convolve, convolve_patches
from rpn_jax.ops.patches import patches_3x3
from rpn_jax.ops.precision import matmul
from rpn_jax.structures import RPNOutputs

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

    Weights = tuple[Float[Array, "..."], Float[Array, " _"]]
    """Kernel and bias."""

OUTPUT_CONVOLUTIONS = ("rpn_cls", "rpn_reg")
"""Names of the 1x1 convolutions. Their biases are added in float32 in every precision."""

head_normal = nn.initializers.normal(0.01)


class RPNHead(nn.Module):
    """A 3x3 convolution, ReLU, and 1x1 convolutions to objectness and deltas.

    All levels share the weights.
    """

    features: int
    anchors_per_cell: int
    precision: Precision

    def __call__(self, levels: tuple[Float[Array, "B _ _ C"], ...]) -> RPNOutputs:
        """Return the outputs at every cell of every level."""
        shared, both = self._weights(levels[0].shape[-1])
        hidden = [relu(convolve(x, *shared, self.precision)) for x in levels]
        return self._outputs(hidden, *both)

    def at_cells(
        self, levels: tuple[Float[Array, "B _ _ C"], ...], cells: Int[Array, "B S"]
    ) -> RPNOutputs:
        """Return the outputs at some cells, as a single level with one row of cells.

        Args:
          levels: feature maps of all levels.
          cells: flat cell indices, order level, row, column; distinct for each picture.
        """
        shared, both = self._weights(levels[0].shape[-1])
        hidden = relu(convolve_patches(patches_3x3(levels, cells), *shared, self.precision))
        return self._outputs([hidden[:, None]], *both)

    @nn.compact
    def _weights(self, in_features: int) -> tuple[Weights, Weights]:
        """Return the weights of the 3x3 convolution, and of both 1x1 convolutions concatenated."""
        anchors = self.anchors_per_cell
        shared = self._conv_weights("rpn_conv", in_features, self.features, 3)
        kernel_cls, bias_cls = self._conv_weights("rpn_cls", self.features, anchors, 1)
        kernel_reg, bias_reg = self._conv_weights("rpn_reg", self.features, 4 * anchors, 1)
        # One product for both outputs reads the activations, by far the larger operand, once.
        kernel_both = jnp.concatenate([kernel_cls, kernel_reg], axis=-1)[0, 0]
        return shared, (kernel_both, jnp.concatenate([bias_cls, bias_reg]))

    def _conv_weights(
        self, name: str, in_features: int, features: int, kernel_size: int
    ) -> Weights:
        kernel, bias = ConvWeights(
            in_features, features, kernel_size, use_bias=True, kernel_init=head_normal, name=name
        )()
        assert bias is not None
        return kernel, bias

    def _outputs(
        self,
        levels: Sequence[Float[Array, "B _ _ C"]],
        kernel: Float[Array, "C O"],
        bias: Float[Array, " O"],
    ) -> RPNOutputs:
        """Return objectness and deltas, from the activations after the 3x3 convolution."""
        anchors = self.anchors_per_cell
        objectness, deltas = [], []
        for hidden in levels:
            both = matmul(hidden, kernel, self.precision, jnp.float32) + bias
            objectness.append(both[..., :anchors])
            deltas.append(both[..., anchors:].reshape(*both.shape[:-1], anchors, 4))
        return RPNOutputs(objectness=tuple(objectness), deltas=tuple(deltas))
