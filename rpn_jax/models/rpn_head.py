"""The head of a Region Proposal Network (Ren et al. 2015): the same weights on every level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp

from rpn_jax.models.convolution import Precision, as_factors, compute_dtype, convolve, lax_precision
from rpn_jax.models.layers import ConvWeights, relu
from rpn_jax.structures import RPNOutputs

if TYPE_CHECKING:
    from jaxtyping import Array, Float

head_normal = nn.initializers.normal(0.01)


class RPNHead(nn.Module):
    """3x3 convolution, ReLU, and 1x1 convolutions to objectness and deltas."""

    features: int
    anchors_per_cell: int
    precision: Precision

    @nn.compact
    def __call__(self, levels: tuple[Float[Array, "B h w C"], ...]) -> RPNOutputs:
        anchors = self.anchors_per_cell
        kernel, bias = self._weights("rpn_conv", levels[0].shape[-1], self.features, 3)
        kernel_cls, bias_cls = self._weights("rpn_cls", self.features, anchors, 1)
        kernel_reg, bias_reg = self._weights("rpn_reg", self.features, 4 * anchors, 1)
        # One product for both outputs: the activations, by far the larger operand, are read once.
        kernel_both = jnp.concatenate([kernel_cls, kernel_reg], axis=-1)[0, 0]
        bias_both = jnp.concatenate([bias_cls, bias_reg])
        objectness, deltas = [], []
        for x in levels:
            hidden = relu(convolve(x, kernel, bias, self.precision))
            both = self._project(hidden, kernel_both) + bias_both
            objectness.append(both[..., :anchors])
            deltas.append(both[..., anchors:].reshape(*both.shape[:-1], anchors, 4))
        return RPNOutputs(objectness=tuple(objectness), deltas=tuple(deltas))

    def _weights(
        self, name: str, in_features: int, features: int, kernel_size: int
    ) -> tuple[Float[Array, "k k I O"], Float[Array, " O"]]:
        kernel, bias = ConvWeights(
            in_features, features, kernel_size, use_bias=True, kernel_init=head_normal, name=name
        )()
        assert bias is not None
        return kernel, bias

    def _project(
        self, hidden: Float[Array, "B h w C"], kernel: Float[Array, "C O"]
    ) -> Float[Array, "B h w O"]:
        precision = lax_precision(self.precision)
        factors = as_factors(precision, hidden, kernel.astype(compute_dtype(self.precision)))
        return jnp.matmul(*factors, precision=precision, preferred_element_type=jnp.float32)
