"""Convolutions as PyTorch computes them, in NHWC with HWIO kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from rpn_jax.config import Precision
from rpn_jax.ops import space_to_depth
from rpn_jax.ops.cpu import convolution as on_cpu
from rpn_jax.ops.precision import compute_dtype, lax_precision, matmul

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def convolve(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k J O"],
    bias: Float[Array, " O"] | None,
    precision: Precision,
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "B h w O"]:
    """Convolve with PyTorch's explicit padding of ``dilation * (k // 2)`` on every side.

    Reverse-mode differentiable everywhere; forward-mode differentiable on GPUs, not on CPUs.

    Args:
      x: activations.
      kernel: HWIO. There are ``I / J`` groups of channels.
      bias: added after the convolution.
      precision: see `rpn_jax.ops.precision`.
      stride: distance between output pixels in input pixels, for rows and columns.
      dilation: distance between the input pixels that neighbouring kernel weights multiply.
    """
    dtype = compute_dtype(precision)
    plain = partial(
        _plain_convolve, precision=lax_precision(precision), stride=stride, dilation=dilation
    )
    y = lax.platform_dependent(
        x.astype(dtype),
        kernel.astype(dtype),
        cpu=partial(
            on_cpu.convolve, plain=plain, precision=precision, stride=stride, dilation=dilation
        ),
        default=partial(_default_convolve, plain=plain, stride=stride),
    )
    return y if bias is None else _add_bias(y, bias)


def convolve_patches(
    patches: Float[Array, "*batch kkI"],
    kernel: Float[Array, "k k I O"],
    bias: Float[Array, " O"],
    precision: Precision,
) -> Float[Array, "*batch O"]:
    """Convolve pixels that are gathered already: `convolve` for the output of `patches_3x3`.

    Args:
      patches: the ``k * k`` input pixels of each output pixel, row by row.
      kernel: HWIO.
      bias: added after the convolution.
      precision: see `rpn_jax.ops.precision`.
    """
    return _add_bias(matmul(patches, kernel.reshape(-1, kernel.shape[-1]), precision), bias)


def _default_convolve(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k J O"],
    plain: Callable[[Array, Array], Array],
    stride: int,
) -> Float[Array, "B h w O"]:
    if space_to_depth.applies(x, kernel, stride):
        return space_to_depth.convolve_pixel_blocks(x, kernel)
    return plain(x, kernel)


def _plain_convolve(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k J O"],
    precision: lax.Precision,
    stride: int,
    dilation: int,
) -> Float[Array, "B h w O"]:
    pad = dilation * (kernel.shape[0] // 2)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
        precision=precision,
    )


def _add_bias(y: Float[Array, "*batch O"], bias: Float[Array, " O"]) -> Float[Array, "*batch O"]:
    # Broadcast before the cast, so that the gradient of the bias is summed in the dtype of the
    # bias. bfloat16 cannot hold so long a sum.
    return y + jnp.broadcast_to(bias, y.shape).astype(y.dtype)
