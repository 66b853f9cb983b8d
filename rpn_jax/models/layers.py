"""Convolutions and norms as PyTorch computes them, in NHWC.

Module names follow PyTorch's, so a parameter's path joined with dots is the PyTorch key but for the
last word: ``kernel`` and ``scale`` are its ``weight``, ``mean`` and ``var`` its ``running_mean``
and ``running_var``. Kernels are HWIO.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
"""Name of a kernel in the order that GPUs' convolutions read, see `rpn_jax.models.folding`."""
NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9

kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
xavier_uniform = nn.initializers.xavier_uniform()


class ConvWeights(nn.Module):
    """The kernel and, if there is one, the bias of a convolution."""

    in_features: int
    features: int
    kernel_size: int
    groups: int = 1
    use_bias: bool = False
    kernel_init: Initializer = kaiming_normal

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "k k I O"], Float[Array, " O"] | None]:
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
    """Batch norm with stored statistics, as a scale and a shift to fold into a convolution."""

    features: int
    trainable: bool
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
        scale = self.param("scale", self.scale_init, (self.features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        if not self.trainable:
            scale, bias = lax.stop_gradient((scale, bias))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (self.features,), jnp.float32).value
        var = self.variable("batch_stats", "var", jnp.ones, (self.features,), jnp.float32).value
        multiplier = scale / jnp.sqrt(var + NORM_EPSILON)
        return multiplier, bias - mean * multiplier


class GroupNorm(nn.Module):
    """Group norm (Wu and He 2018) as one scale and one shift of each channel.

    Statistics are float32. Written so that the forward pass, and its gradient, read an activation
    twice: once for the sums, once for the result.
    """

    features: int
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
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
    """For each channel the mean over its group."""
    batch, features = channels.shape
    groups = jnp.mean(channels.reshape(batch, NORM_GROUPS, -1), axis=-1)
    return jnp.repeat(groups, features // NORM_GROUPS, axis=-1)


@dataclass(frozen=True)
class NormOptions:
    """What every norm of a network has in common."""

    kind: NormKind
    """'frozen', 'batch' or 'group', as in `rpn_jax.config.BackboneConfig.norm`; or 'folded', in the
    weights of the convolution already (`rpn_jax.models.folding`)."""
    trainable: bool
    """Whether scale and bias get gradients."""
    train: bool
    """Whether batch norm takes and updates the statistics of this batch."""
    axis_name: str | None
    """The `pmap` axis over which batch statistics are shared, if any."""

    @property
    def prefix(self) -> str:
        """PyTorch's name for such a norm, without its number."""
        return "gn" if self.kind == "group" else "bn"


def conv_norm(
    x: Float[Array, "B H W I"],
    features: int,
    kernel_size: int,
    norm: NormOptions,
    precision: Precision,
    conv_name: str,
    norm_name: str,
    stride: int = 1,
    groups: int = 1,
    scale_init: Initializer = nn.initializers.ones,
) -> Float[Array, "B h w O"]:
    """Convolution without bias, then norm: two sibling modules of the calling module.

    A frozen norm is folded into the convolution, ``w' = w * gamma / sigma``: exact, differentiable
    in gamma and beta, and one pass less over every activation.
    """
    folded = norm.kind == "folded"
    kernel, bias = ConvWeights(
        x.shape[-1], features, kernel_size, groups, use_bias=folded, name=conv_name
    )()
    if folded:
        return convolve(x, kernel, bias, precision, stride)
    if norm.kind == "frozen":
        scale, shift = FrozenNorm(features, norm.trainable, scale_init, name=norm_name)()
        return convolve(x, kernel * scale, shift, precision, stride)
    y = convolve(x, kernel, None, precision, stride)
    if norm.kind == "batch":
        return nn.BatchNorm(
            use_running_average=not norm.train,
            momentum=BATCH_NORM_MOMENTUM,
            epsilon=NORM_EPSILON,
            dtype=y.dtype,
            scale_init=scale_init,
            axis_name=norm.axis_name,
            name=norm_name,
        )(y)
    return GroupNorm(features, scale_init, name=norm_name)(y)
