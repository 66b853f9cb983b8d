"""The CPU form of a float32 convolution and of its gradients.

XLA's CPU backend is slow at some of them, so they are expressed in other operations:

- 1x1 kernels are matrix products;
- 3x3 kernels use Winograd's algorithm;
- groups, which XLA computes on one core, become a few dense convolutions;
- the gradient of the kernel, which XLA computes as a convolution with a kernel as large as the
  picture, is a sum of matrix products;
- the gradient of the input, for which XLA flips the kernel on one core, is a matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rpn_jax.ops.cpu import winograd
from rpn_jax.ops.cpu.input_gradient import input_gradient_by_matmul
from rpn_jax.ops.cpu.kernel_gradient import kernel_gradient_by_matmul
from rpn_jax.ops.cpu.tf32 import round_to_tf32

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Gradients = tuple[Float[Array, "B H W I"], Float[Array, "k k J O"]]

Convolution = Callable[[jax.Array, jax.Array], jax.Array]
"""(x, kernel) -> y, at a fixed stride and for any number of groups."""

MIN_PIXELS = 256
"""Fewest output pixels for these forms. With fewer, XLA's own forms compile sooner and cost less
than a millisecond more, except where the picture is smaller than the kernel, and for the kernel
gradient of grouped convolutions, which therefore always has its own form."""
MIN_WINOGRAD_CHANNELS = 128
"""Fewest channels, in and out, for Winograd's algorithm. With fewer, its transforms take the time
that its products save."""
MIN_WINOGRAD_FLOPS = 5e9
"""Fewest operations of the plain convolution for Winograd's algorithm. With fewer, the time saved
is less than the cost: half a second of compilation and 20 MB."""
MIN_BLOCK_CHANNELS = 64
"""Fewest input channels of a block of groups that is convolved as one dense convolution."""
MAX_BLOCKS = 8
"""Most blocks of groups, because each adds to the time of compilation."""


def convolve(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k J O"],
    plain: Convolution,
    precision: str,
    stride: int,
    dilation: int,
) -> Float[Array, "B h w O"]:
    """Return ``plain(x, kernel)`` and its gradients in the forms that are fastest on CPUs.

    Only reverse-mode differentiable, unless ``plain`` is the fastest form.

    Args:
      x: float32 or bfloat16.
      kernel: HWIO in the dtype of ``x``. There are ``I / J`` groups of channels.
      plain: the convolution as XLA has it.
      precision: 'tf32' rounds the operands of every product to TF32.
      stride: of the convolution, both ways; it pads ``k // 2`` on every side.
      dilation: of the convolution. None of these forms computes dilated ones.
    """
    batch, height, width, _ = x.shape
    is_large = batch * height * width >= MIN_PIXELS * stride**2 and dilation == 1
    has_fast_gradients = is_large or (_is_grouped(x, kernel) and dilation == 1)
    if x.dtype != jnp.float32 or (precision == "float32" and not has_fast_gradients):
        return plain(x, kernel)
    prepare = round_to_tf32 if precision == "tf32" else _unchanged

    def forward(x: Array, kernel: Array) -> Array:
        operands = prepare(x), prepare(kernel)
        return _convolve(*operands, plain, stride) if is_large else plain(*operands)

    def backward(saved: tuple[Array, Array], y_grad: Array) -> Gradients:
        operands = prepare(saved[0]), prepare(saved[1]), prepare(y_grad)
        if has_fast_gradients:
            return _gradients(*operands, plain, stride)
        return jax.vjp(plain, *operands[:2])[1](operands[2])

    differentiable = jax.custom_vjp(forward)
    differentiable.defvjp(lambda x, kernel: (forward(x, kernel), (x, kernel)), backward)
    return differentiable(x, kernel)


def _is_grouped(x: Float[Array, "B H W I"], kernel: Float[Array, "k k J O"]) -> bool:
    return kernel.shape[2] < x.shape[-1]


def _unchanged(x: Array) -> Array:
    return x


def _convolve(
    x: Float[Array, "B H W I"], kernel: Float[Array, "k k J O"], plain: Convolution, stride: int
) -> Float[Array, "B h w O"]:
    if _is_grouped(x, kernel):
        return _convolve_in_blocks(x, kernel, plain, stride)
    if _winograd_pays(x, kernel, stride):
        return winograd.convolve_3x3(x, kernel)
    if kernel.shape[0] == stride == 1:
        return jnp.dot(x, kernel[0, 0], precision="highest")
    return plain(x, kernel)


def _gradients(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k J O"],
    y_grad: Float[Array, "B h w O"],
    plain: Convolution,
    stride: int,
) -> Gradients:
    if _is_grouped(x, kernel):
        in_blocks = partial(_convolve_in_blocks, plain=plain, stride=stride)
        return jax.vjp(in_blocks, x, kernel)[1](y_grad)
    if _winograd_pays(x, kernel, stride):
        x_grad = winograd.input_gradient_3x3(y_grad, kernel)
    elif kernel.shape[0] == 1 or kernel.size > x.size:
        x_grad = input_gradient_by_matmul(y_grad, kernel, x.shape[1], x.shape[2], stride)
    else:
        (x_grad,) = jax.linear_transpose(lambda x: plain(x, kernel), x)(y_grad)
    return x_grad, kernel_gradient_by_matmul(x, y_grad, kernel.shape[0], stride)


def _winograd_pays(
    x: Float[Array, "B H W I"], kernel: Float[Array, "k k I O"], stride: int
) -> bool:
    return (
        kernel.shape[0] == 3
        and stride == 1
        and min(kernel.shape[2:]) >= MIN_WINOGRAD_CHANNELS
        and 2 * x.size * kernel.size // kernel.shape[2] >= MIN_WINOGRAD_FLOPS
    )


def _convolve_in_blocks(
    x: Float[Array, "B H W I"], kernel: Float[Array, "k k J O"], plain: Convolution, stride: int
) -> Float[Array, "B h w O"]:
    """Compute a grouped convolution as a few dense ones, each of several groups.

    A dense kernel has zeros between its groups. XLA's CPU backend runs a grouped convolution on one
    core and at a fraction of that core's speed, so the products with zeros cost less.
    """
    channels = x.shape[-1]
    groups = channels // kernel.shape[2]
    blocks = max(
        count
        for count in range(1, MAX_BLOCKS + 1)
        if groups % count == 0 and (count == 1 or channels // count >= MIN_BLOCK_CHANNELS)
    )
    dense = _block_diagonal(kernel, groups, groups // blocks)
    outputs = [
        convolve(part, weights, plain, "float32", stride, dilation=1)
        for part, weights in zip(
            jnp.split(x, blocks, axis=-1), jnp.split(dense, blocks, axis=-1), strict=True
        )
    ]
    return jnp.concatenate(outputs, axis=-1)


def _block_diagonal(
    kernel: Float[Array, "k k J O"], groups: int, merged: int
) -> Float[Array, "k k MJ O"]:
    """Return the kernel of ``groups / merged`` groups that computes the same outputs."""
    size, _, inputs, features = kernel.shape
    by_group = kernel.reshape(size, size, inputs, groups // merged, merged, features // groups)
    own_inputs = jnp.eye(merged, dtype=kernel.dtype)
    dense = jnp.einsum("hwibmo,nm->hwnibmo", by_group, own_inputs, precision="highest")
    return dense.reshape(size, size, merged * inputs, features)
