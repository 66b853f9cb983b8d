"""Convolutions as PyTorch computes them, in NHWC with HWIO kernels, and their gradients.

XLA's CPU backend is slow at two forms of convolution, which are written here in other words for it:
the gradient by the kernel, a convolution with a kernel as large as the picture, and groups.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Gradients = tuple[Float[Array, "B H W I"], Float[Array, "k k J O"]]

Precision = Literal["float32", "tf32", "bfloat16"]

TILE_BYTES = 2**21
"""What a factor of a tile's product may take: both are to stay in the cache."""
MIN_PIXELS = 256
"""Below so many output pixels a picture, XLA's own forms are as fast."""
BLOCK_CHANNELS = 64
"""Fewest input channels of a block of groups that is convolved as one."""
MAX_BLOCKS = 8
"""Most of them, as each is compiled by itself."""


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

    Reverse-mode differentiable; not forward-mode.

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
    y = _convolve(x.astype(dtype), kernel.astype(dtype), lax_precision(precision), stride, groups)
    return y if bias is None else _add_bias(y, bias)


@jax.custom_vjp
def _add_bias(y: Float[Array, "B h w O"], bias: Float[Array, " O"]) -> Float[Array, "B h w O"]:
    """Sum in y's dtype, the gradient by bias in float32: 16 bits do not hold so long a sum."""
    return y + bias.astype(y.dtype)


def _add_bias_backward(
    bias: Float[Array, " O"], y_grad: Float[Array, "B h w O"]
) -> tuple[Float[Array, "B h w O"], Float[Array, " O"]]:
    return y_grad, jnp.sum(y_grad, axis=(0, 1, 2), dtype=jnp.float32).astype(bias.dtype)


_add_bias.defvjp(lambda y, bias: (_add_bias(y, bias), bias), _add_bias_backward)


def _convolve_forward(
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k J O"],
    precision: lax.Precision,
    stride: int,
    groups: int,
) -> Float[Array, "B h w O"]:
    plain = partial(_plain_convolve, precision=precision, stride=stride, groups=groups)
    if not _cpu_form_pays(x, stride) or groups == 1:
        return plain(x, kernel)
    in_blocks = partial(_convolve_in_blocks, precision=precision, stride=stride, groups=groups)
    return lax.platform_dependent(x, kernel, cpu=in_blocks, default=plain)


def _convolve_backward(
    precision: lax.Precision,
    stride: int,
    groups: int,
    saved: tuple[Float[Array, "B H W I"], Float[Array, "k k J O"]],
    y_grad: Float[Array, "B h w O"],
) -> Gradients:
    x, kernel = saved
    plain = partial(_plain_convolve, precision=precision, stride=stride, groups=groups)
    in_blocks = partial(_convolve_in_blocks, precision=precision, stride=stride, groups=groups)

    def by(form: Callable[..., Array], x: Array, kernel: Array, y_grad: Array) -> Gradients:
        return jax.vjp(form, x, kernel)[1](y_grad)

    def by_matmul(x: Array, kernel: Array, y_grad: Array) -> Gradients:
        (x_grad,) = jax.linear_transpose(lambda x: plain(x, kernel), x)(y_grad)
        return x_grad, kernel_gradient_by_matmul(x, y_grad, kernel.shape[0], stride)

    if not _cpu_form_pays(x, stride):
        return by(plain, x, kernel, y_grad)
    on_cpu = by_matmul if groups == 1 else partial(by, in_blocks)
    return lax.platform_dependent(x, kernel, y_grad, cpu=on_cpu, default=partial(by, plain))


_convolve = jax.custom_vjp(_convolve_forward, nondiff_argnums=(2, 3, 4))
_convolve.defvjp(
    lambda x, kernel, *static: (_convolve_forward(x, kernel, *static), (x, kernel)),
    _convolve_backward,
)


def _cpu_form_pays(x: Float[Array, "B H W I"], stride: int) -> bool:
    _, height, width, _ = x.shape
    return x.dtype == jnp.float32 and height * width >= MIN_PIXELS * stride**2


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


def kernel_gradient_by_matmul(
    x: Float[Array, "B H W I"], y_grad: Float[Array, "B h w O"], size: int, stride: int
) -> Float[Array, "k k I O"]:
    """The gradient of a convolution's kernel as matrix products.

    ``kernel_grad[i, j] = sum(x[stride * row + i, stride * column + j] * y_grad[row, column])`` with
    x padded. For a tile of rows, x shifted by each column ``j`` is put side by side as one factor,
    and ``y_grad`` shifted by rows as the other: their product holds every ``(i, j)``, without
    ``k * k`` copies of x. Of a strided convolution each phase of x's rows is put beside, too.

    Args:
      x: float32 input of the convolution, unpadded.
      y_grad: gradient of its output.
      size: k, side of the kernel; the convolution padded ``k // 2`` on every side.
      stride: of the convolution, both ways.
    """
    if size == 1:
        axes = ((0, 1, 2), (0, 1, 2))
        return jnp.tensordot(x[:, ::stride, ::stride], y_grad, axes)[None, None]
    batch, height, width, channels = x.shape
    _, _, columns, features = y_grad.shape
    pad, shifts = size // 2, -(-size // stride)
    # Padding is left out where it can be: whole groups of ``stride`` rows of zeros above x.
    groups_left_out, pad_above = divmod(pad, stride)
    groups = -(-(pad_above + height) // stride)
    pixels = TILE_BYTES // (4 * max(stride * size * channels, shifts * features))
    tiles = -(-groups // max(pixels // columns, 1))
    rows = -(-groups // tiles)
    x = _pad_axis(x, 1, pad_above, stride * tiles * rows)
    y_grad = _pad_axis(y_grad, 1, shifts - 1 - groups_left_out, tiles * rows + shifts - 1)
    window = stride * (columns - 1) + size

    def add_tile(index: Array, total: Array) -> Array:
        picture, tile = jnp.divmod(index, tiles)
        row = tile * rows
        x_tile = lax.dynamic_slice(
            x, (picture, stride * row, 0, 0), (1, stride * rows, width, channels)
        )[0]
        x_tile = _pad_axis(x_tile, 1, pad, window)
        y_tile = lax.dynamic_slice(
            y_grad, (picture, row, 0, 0), (1, rows + shifts - 1, columns, features)
        )[0]
        patches = [
            x_tile[phase::stride, j : j + window - size + 1 : stride]
            for phase in range(stride)
            for j in range(size)
        ]
        shifted = [y_tile[first : first + rows] for first in reversed(range(shifts))]
        factors = jnp.concatenate(patches, axis=-1), jnp.concatenate(shifted, axis=-1)
        return total + jnp.tensordot(*factors, axes=((0, 1), (0, 1)))

    total = jnp.zeros((stride * size * channels, shifts * features))
    total = lax.fori_loop(0, batch * tiles, add_tile, total)
    # Row i of the kernel is shift i // stride of phase i % stride.
    by_row = total.reshape(stride, size, channels, shifts, features).transpose(3, 0, 1, 2, 4)
    return by_row.reshape(shifts * stride, size, channels, features)[:size]


def _pad_axis(x: Float[Array, "..."], axis: int, before: int, length: int) -> Float[Array, "..."]:
    """Zeros before an axis and as many behind as make up its length, or cut off behind."""
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (before, length - before - x.shape[axis], 0)
    return lax.pad(x, jnp.zeros((), x.dtype), padding)
