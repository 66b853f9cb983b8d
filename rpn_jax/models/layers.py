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

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Precision = Literal["float32", "tf32", "bfloat16"]
NormKind = Literal["frozen", "batch", "group"]
Initializer = Callable[..., jax.Array]

NORM_EPSILON = 1e-5
NORM_GROUPS = 32
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
        kernel = self.param("kernel", self.kernel_init, shape)
        if not self.use_bias:
            return kernel, None
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class FrozenNorm(nn.Module):
    """Batch norm with stored statistics, as a scale and a shift to fold into a convolution."""

    features: int
    trainable: bool
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
        scale = self.param("scale", self.scale_init, (self.features,))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if not self.trainable:
            scale, bias = lax.stop_gradient((scale, bias))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (self.features,)).value
        var = self.variable("batch_stats", "var", jnp.ones, (self.features,)).value
        multiplier = scale / jnp.sqrt(var + NORM_EPSILON)
        return multiplier, bias - mean * multiplier


def compute_dtype(precision: Precision) -> jnp.dtype:
    """Dtype of activations."""
    return jnp.dtype(jnp.bfloat16 if precision == "bfloat16" else jnp.float32)


def lax_precision(precision: Precision) -> lax.Precision:
    """XLA's name for the arithmetic; its default may round float32 to TF32 on GPUs."""
    return lax.Precision.HIGHEST if precision == "float32" else lax.Precision.DEFAULT


def convolve(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k J O"],
    bias: Float[Array, " O"] | None,
    precision: Precision,
    stride: int = 1,
    groups: int = 1,
) -> Float[Array, "B h w O"]:
    """Convolve with PyTorch's explicit padding of ``k // 2`` on every side.

    Args:
      x: activations.
      kernel: float32 HWIO, ``J = I / groups``.
      bias: float32, added after the convolution.
      precision: 'float32' is exact, 'tf32' lets NVIDIA GPUs use TF32, 'bfloat16' computes and
        returns bfloat16.
      stride: pixels between outputs, both ways.
      groups: groups of channels.
    """
    dtype = compute_dtype(precision)
    pad = kernel.shape[0] // 2
    y = lax.conv_general_dilated(
        x.astype(dtype),
        kernel.astype(dtype),
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=lax_precision(precision),
    )
    return y if bias is None else y + bias.astype(y.dtype)


@dataclass(frozen=True)
class NormOptions:
    """What every norm of a network has in common."""

    kind: NormKind
    """'frozen', 'batch' or 'group', as in `rpn_jax.config.BackboneConfig.norm`."""
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
    kernel, _ = ConvWeights(x.shape[-1], features, kernel_size, groups, name=conv_name)()
    if norm.kind == "frozen":
        scale, shift = FrozenNorm(features, norm.trainable, scale_init, name=norm_name)()
        return convolve(x, kernel * scale, shift, precision, stride, groups)
    y = convolve(x, kernel, None, precision, stride, groups)
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
    return nn.GroupNorm(
        num_groups=NORM_GROUPS,
        epsilon=NORM_EPSILON,
        dtype=y.dtype,
        scale_init=scale_init,
        name=norm_name,
    )(y)


def max_pool_3x3_stride_2(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Max-pool with one pixel of -inf around, as PyTorch's ``MaxPool2d(3, 2, padding=1)``."""
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
