"""Convolutions and norms as PyTorch computes them, in NHWC.

Module names follow PyTorch's. A parameter's path, joined with dots, is the PyTorch key except for
the last word: PyTorch calls ``kernel`` and ``scale`` ``weight``, ``mean`` ``running_mean``, and
``var`` ``running_var``. Kernels are HWIO.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from rpn_jax.config import NORM_GROUPS, Precision
from rpn_jax.ops.convolution import convolve

if TYPE_CHECKING:
    from jaxtyping import Array, Float

NormKind = Literal["frozen", "batch", "group", "folded"]
Initializer = Callable[..., jax.Array]

KERNEL_OHWI = "kernel_ohwi"
"""Name of a kernel stored in OHWI order, see `rpn_jax.models.folding`."""
NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9

kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
xavier_uniform = nn.initializers.xavier_uniform()


class ConvWeights(nn.Module):
    """The weights of a convolution: a kernel and, with ``use_bias``, a bias."""

    in_features: int
    features: int
    kernel_size: int
    groups: int = 1
    use_bias: bool = False
    kernel_init: Initializer = kaiming_normal

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "k k J O"], Float[Array, " O"] | None]:
        """Return the HWIO kernel, with J = ``in_features / groups``, and the bias."""
        shape = (
            self.kernel_size,
            self.kernel_size,
            self.in_features // self.groups,
            self.features,
        )
        if self.has_variable("params", KERNEL_OHWI):
            kernel = jnp.transpose(self.get_variable("params", KERNEL_OHWI), (1, 2, 3, 0))
        else:
            kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        if not self.use_bias:
            return kernel, None
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)


class FrozenNorm(nn.Module):
    """Batch norm with stored statistics, as a multiplier and a shift for each channel."""

    features: int
    trainable: bool
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
        """Return the multiplier and the shift."""
        scale = self.param("scale", self.scale_init, (self.features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        if not self.trainable:
            scale, bias = lax.stop_gradient((scale, bias))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (self.features,), jnp.float32).value
        var = self.variable("batch_stats", "var", jnp.ones, (self.features,), jnp.float32).value
        multiplier = scale / jnp.sqrt(var + NORM_EPSILON)
        return multiplier, bias - mean * multiplier


class GroupNorm(nn.Module):
    """Group norm (Wu and He 2018), as a multiplier and a shift for each channel.

    Statistics are float32. The forward pass and its gradient each read an activation twice: once
    for the sums, once for the result.
    """

    features: int
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Return the normalised activations, in the dtype of ``x``."""
        scale = self.param("scale", self.scale_init, (self.features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x32 = x.astype(jnp.float32)
        mean = _mean_of_groups(jnp.mean(x32, axis=(1, 2)))
        var = jnp.maximum(_mean_of_groups(jnp.mean(x32 * x32, axis=(1, 2))) - mean * mean, 0.0)
        multiplier = scale / jnp.sqrt(var + NORM_EPSILON)
        shift = bias - mean * multiplier
        y = x32 * multiplier[:, None, None] + shift[:, None, None]
        return y.astype(x.dtype)


def _mean_of_groups(channels: Float[Array, "B C"]) -> Float[Array, "B C"]:
    """Return for each channel the mean over its group."""
    batch, features = channels.shape
    groups = jnp.mean(channels.reshape(batch, NORM_GROUPS, -1), axis=-1)
    return jnp.repeat(groups, features // NORM_GROUPS, axis=-1)


@dataclass(frozen=True)
class LayerOptions:
    """What all layers of a stage have in common."""

    norm: NormKind
    """'frozen', 'batch' or 'group', see `rpn_jax.config.BackboneConfig.norm`. 'folded': there is no
    norm, because `rpn_jax.models.folding` has folded it into the convolution."""
    train_norm: bool
    """Whether the scale and bias of a frozen norm get gradients."""
    update_statistics: bool
    """Whether batch norm uses and updates the statistics of this batch."""
    axis_name: str | None
    """The `pmap` axis over which batch statistics are shared, if any."""
    precision: Precision
    """See `rpn_jax.ops.precision`."""

    @property
    def norm_prefix(self) -> str:
        """PyTorch's name for such a norm, without its number."""
        return "gn" if self.norm == "group" else "bn"


@dataclass(frozen=True)
class ConvNorm:
    """A convolution without bias, and the norm that follows it."""

    conv_name: str
    """Name of the convolution's weights in the calling module."""
    norm_name: str
    """Name of the norm's weights in the calling module."""
    features: int
    """Output channels."""
    kernel_size: int
    """Side of the kernel."""
    stride: int = 1
    """Stride, both ways."""
    dilation: int = 1
    """Dilation, both ways."""
    groups: int = 1
    """Groups of channels."""
    scale_init: Initializer = nn.initializers.ones
    """Initial scale of the norm."""


def conv_norm(
    x: Float[Array, "B H W I"], layer: ConvNorm, options: LayerOptions
) -> Float[Array, "B h w O"]:
    """Apply a convolution and its norm. Their weights become children of the calling module.

    A frozen norm is folded into the convolution, ``w' = w * gamma / sigma``. This is exact and
    differentiable in gamma and beta, and it saves one pass over the activations.
    """
    folded = options.norm == "folded"
    kernel, bias = ConvWeights(
        x.shape[-1],
        layer.features,
        layer.kernel_size,
        layer.groups,
        use_bias=folded,
        name=layer.conv_name,
    )()
    convolve_x = partial(
        convolve, x, precision=options.precision, stride=layer.stride, dilation=layer.dilation
    )
    if folded:
        return convolve_x(kernel, bias)
    if options.norm == "frozen":
        scale, shift = FrozenNorm(
            layer.features, options.train_norm, layer.scale_init, name=layer.norm_name
        )()
        return convolve_x(kernel * scale, shift)
    y = convolve_x(kernel, None)
    if options.norm == "batch":
        return nn.BatchNorm(
            use_running_average=not options.update_statistics,
            momentum=BATCH_NORM_MOMENTUM,
            epsilon=NORM_EPSILON,
            dtype=y.dtype,
            scale_init=layer.scale_init,
            axis_name=options.axis_name,
            name=layer.norm_name,
        )(y)
    return GroupNorm(layer.features, layer.scale_init, name=layer.norm_name)(y)
