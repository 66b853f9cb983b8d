"""Convolutions as PyTorch computes them, in NHWC with HWIO kernels, and their gradients.

On a CPU, in float32, some are put to XLA in other words: 1x1 kernels as matrix products; 3x3
kernels by Winograd's; groups, which it runs one after the other; the gradient by the kernel, which
it takes for a convolution with a kernel as large as the picture; and the gradient by the input,
for which it turns the kernel around on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from rpn_jax.config import Precision
from rpn_jax.ops.cpu import winograd
from rpn_jax.ops.cpu.input_gradient import input_gradient_by_matmul
from rpn_jax.ops.cpu.kernel_gradient import kernel_gradient_by_matmul

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Gradients = tuple[Float[Array, "B H W I"], Float[Array, "k k J O"]]

MIN_PIXELS = 256
"""Below so many output pixels XLA's own forms compile sooner and lose less than a millisecond, but
where a picture is smaller than the kernel."""
MIN_WINOGRAD_CHANNELS = 128
"""Below so many, in or out, the transforms take what the products save."""
MIN_WINOGRAD_FLOPS = 5e9
"""Below so many the time saved does not pay for half a second more of compiling, and 20 MB."""
BLOCK_CHANNELS = 64
"""Fewest input channels of a block of groups that is convolved as one."""
MAX_BLOCKS = 8
"""Most of them, as each is compiled by itself."""
TF32_EXPONENT, TF32_MANTISSA = 8, 10
"""Bits of TF32."""


def compute_dtype(precision: Precision) -> jnp.dtype:
    """Dtype of activations."""
    return jnp.dtype(jnp.bfloat16 if precision == "bfloat16" else jnp.float32)


def lax_precision(precision: Precision) -> lax.Precision:
    """XLA's name for the arithmetic; its default takes float32 for TF32 on GPUs."""
    return lax.Precision.HIGHEST if precision == "float32" else lax.Precision.DEFAULT


def as_factors(precision: lax.Precision, *arrays: Array) -> Sequence[Array]:
    """Arrays as a product takes them: as they are, but in TF32 on a CPU rounded, as GPUs do."""
    if precision == lax.Precision.HIGHEST or arrays[0].dtype != jnp.float32:
        return arrays

    def to_tf32(*arrays: Array) -> Sequence[Array]:
        return tuple(lax.reduce_precision(array, TF32_EXPONENT, TF32_MANTISSA) for array in arrays)

    return lax.platform_dependent(*arrays, cpu=to_tf32, default=lambda *arrays: arrays)


def convolve(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k J O"],
    bias: Float[Array, " O"] | None,
    precision: Precision,
    stride: int = 1,
    groups: int = 1,
) -> Float[Array, "B h w O"]:
    """Convolve with PyTorch's explicit padding of ``k // 2`` on every side.

    Reverse-mode differentiable; not forward-mode.

    Args:
      x: activations.
      kernel: float32 HWIO, ``J = I / groups``.
      bias: float32, added after the convolution.
      precision: 'float32' is exact; 'tf32' lets NVIDIA GPUs use TF32, to whose 10 bits CPUs round
        what they multiply; 'bfloat16' computes and returns bfloat16.
      stride: pixels between outputs, both ways.
      groups: groups of channels.
    """
    dtype = compute_dtype(precision)
    y = _convolve(x.astype(dtype), kernel.astype(dtype), lax_precision(precision), stride, groups)
    return y if bias is None else _add_bias(y, bias)


def convolve_patches(
    patches: Float[Array, "... kkI"],
    kernel: Float[Array, "k k I O"],
    bias: Float[Array, " O"],
    precision: Precision,
) -> Float[Array, "... O"]:
    """`convolve` where what the kernel reads lies side by side, row by row."""
    dtype = compute_dtype(precision)
    flat_kernel = kernel.reshape(-1, kernel.shape[-1])
    factors = as_factors(lax_precision(precision), patches.astype(dtype), flat_kernel.astype(dtype))
    return _add_bias(jnp.matmul(*factors, precision=lax_precision(precision)), bias)


@jax.custom_vjp
def _add_bias(y: Float[Array, "... O"], bias: Float[Array, " O"]) -> Float[Array, "... O"]:
    """Sum in y's dtype, the gradient by bias in float32: 16 bits do not hold so long a sum."""
    return y + bias.astype(y.dtype)


def _add_bias_backward(
    bias: Float[Array, " O"], y_grad: Float[Array, "... O"]
) -> tuple[Float[Array, "... O"], Float[Array, " O"]]:
    pixels = tuple(range(y_grad.ndim - 1))
    return y_grad, jnp.sum(y_grad, axis=pixels, dtype=jnp.float32).astype(bias.dtype)


_add_bias.defvjp(lambda y, bias: (_add_bias(y, bias), bias), _add_bias_backward)


def _convolve_forward(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k J O"],
    precision: lax.Precision,
    stride: int,
    groups: int,
) -> Float[Array, "B h w O"]:
    x, kernel = as_factors(precision, x, kernel)
    plain = partial(_plain_convolve, precision=precision, stride=stride, groups=groups)
    if not _cpu_form_pays(x, stride):
        return plain(x, kernel)
    on_cpu = partial(_convolve_on_cpu, precision=precision, stride=stride, groups=groups)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


def _convolve_backward(
    precision: lax.Precision,
    stride: int,
    groups: int,
    saved: tuple[Float[Array, "B H W I"], Float[Array, "k k J O"]],
    y_grad: Float[Array, "B h w O"],
) -> Gradients:
    x, kernel, y_grad = as_factors(precision, *saved, y_grad)

    def plain(x: Array, kernel: Array, y_grad: Array) -> Gradients:
        form = partial(_plain_convolve, precision=precision, stride=stride, groups=groups)
        return jax.vjp(form, x, kernel)[1](y_grad)

    if not _cpu_form_pays(x, stride):
        return plain(x, kernel, y_grad)
    on_cpu = partial(_gradients_on_cpu, precision=precision, stride=stride, groups=groups)
    return lax.platform_dependent(x, kernel, y_grad, cpu=on_cpu, default=plain)


_convolve = jax.custom_vjp(_convolve_forward, nondiff_argnums=(2, 3, 4))
_convolve.defvjp(
    lambda x, kernel, *static: (_convolve_forward(x, kernel, *static), (x, kernel)),
    _convolve_backward,
)


def _convolve_on_cpu(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k J O"],
    precision: lax.Precision,
    stride: int,
    groups: int,
) -> Float[Array, "B h w O"]:
    if groups > 1:
        return _convolve_in_blocks(x, kernel, precision, stride, groups)
    if _winograd_pays(x, kernel, stride):
        return winograd.convolve_3x3(x, kernel)
    if kernel.shape[0] == stride == 1:
        return jnp.dot(x, kernel[0, 0], precision=precision)
    return _plain_convolve(x, kernel, precision, stride, groups)


def _gradients_on_cpu(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k J O"],
    y_grad: Float[Array, "B h w O"],
    precision: lax.Precision,
    stride: int,
    groups: int,
) -> Gradients:
    if groups > 1:
        in_blocks = partial(_convolve_in_blocks, precision=precision, stride=stride, groups=groups)
        return jax.vjp(in_blocks, x, kernel)[1](y_grad)
    if _winograd_pays(x, kernel, stride):
        x_grad = winograd.input_gradient_3x3(y_grad, kernel)
    elif kernel.shape[0] == 1 or kernel.size > x.size:
        x_grad = input_gradient_by_matmul(y_grad, kernel, x.shape[1], x.shape[2], stride)
    else:
        plain = partial(
            _plain_convolve, kernel=kernel, precision=precision, stride=stride, groups=groups
        )
        (x_grad,) = jax.linear_transpose(plain, x)(y_grad)
    return x_grad, kernel_gradient_by_matmul(x, y_grad, kernel.shape[0], stride)


def _cpu_form_pays(x: Float[Array, "B H W I"], stride: int) -> bool:
    batch, height, width, _ = x.shape
    return x.dtype == jnp.float32 and batch * height * width >= MIN_PIXELS * stride**2


def _winograd_pays(
    x: Float[Array, "B H W I"], kernel: Float[Array, "k k I O"], stride: int
) -> bool:
    return (
        kernel.shape[0] == 3
        and stride == 1
        and min(kernel.shape[2:]) >= MIN_WINOGRAD_CHANNELS
        and 2 * x.size * kernel.size // kernel.shape[2] >= MIN_WINOGRAD_FLOPS
    )


def _plain_convolve(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k J O"],
    precision: lax.Precision,
    stride: int,
    groups: int,
) -> Float[Array, "B h w O"]:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=precision,
    )


def _convolve_in_blocks(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k J O"],
    precision: lax.Precision,
    stride: int,
    groups: int,
) -> Float[Array, "B h w O"]:
    """A grouped convolution as a few dense ones, each of several groups, with zeros between them.

    XLA's CPU backend runs a grouped convolution on one core and at a fraction of its speed, so that
    the products with zeros cost less.
    """
    channels = x.shape[-1]
    blocks = max(
        count
        for count in range(1, MAX_BLOCKS + 1)
        if groups % count == 0 and (count == 1 or channels // count >= BLOCK_CHANNELS)
    )
    dense = _block_diagonal(kernel, groups, groups // blocks)
    outputs = [
        _convolve(part, weights, precision, stride, 1)
        for part, weights in zip(
            jnp.split(x, blocks, axis=-1), jnp.split(dense, blocks, axis=-1), strict=True
        )
    ]
    return jnp.concatenate(outputs, axis=-1)


def _block_diagonal(
    kernel: Float[Array, "k k J O"], groups: int, merged: int
) -> Float[Array, "k k MJ O"]:
    """The kernel for ``groups / merged`` groups that does as this one for ``groups``."""
    size, _, inputs, features = kernel.shape
    by_group = kernel.reshape(size, size, inputs, groups // merged, merged, features // groups)
    own_inputs = jnp.eye(merged, dtype=kernel.dtype)
    dense = jnp.einsum("hwibmo,nm->hwnibmo", by_group, own_inputs, precision="highest")
    return dense.reshape(size, size, merged * inputs, features)
