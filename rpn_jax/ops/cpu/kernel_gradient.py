"""The gradient of a convolution's kernel as matrix products."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from rpn_jax.ops.cpu.tiles import pad_axis, tile_size

if TYPE_CHECKING:
    from jaxtyping import Array, Float

TILE_BYTES = 2**21
"""Most memory of one factor of a tile's product, so that both factors stay in the cache."""


def kernel_gradient_by_matmul(
    x: Float[Array, "B H W I"], y_grad: Float[Array, "B h w O"], size: int, stride: int
) -> Float[Array, "k k I O"]:
    """Return the gradient of a convolution's kernel.

    ``kernel_grad[i, j] = sum(x[stride * row + i, stride * column + j] * y_grad[row, column])`` with
    x padded. For a tile of rows, one factor is x shifted by each column ``j``, concatenated over
    channels. The other factor is ``y_grad`` shifted by rows. Their product holds every ``(i, j)``,
    without ``k * k`` copies of x. For a strided convolution, the first factor holds each phase of
    x's rows.

    Args:
      x: float32 input of the convolution, unpadded.
      y_grad: gradient of its output.
      size: k, side of the kernel; the convolution padded ``k // 2`` on every side.
      stride: stride of the convolution, both ways.
    """
    if size == 1:
        axes = ((0, 1, 2), (0, 1, 2))
        return jnp.tensordot(x[:, ::stride, ::stride], y_grad, axes)[None, None]
    batch, height, width, channels = x.shape
    _, _, columns, features = y_grad.shape
    pad, shifts = size // 2, -(-size // stride)
    # Whole groups of ``stride`` rows of zeros above x are left out of the padding.
    groups_left_out, pad_above = divmod(pad, stride)
    groups = -(-(pad_above + height) // stride)
    capacity = TILE_BYTES // (x.dtype.itemsize * max(stride * size * channels, shifts * features))
    pictures, rows = tile_size(batch, groups, columns, capacity)
    tiles = -(-groups // rows)
    x = pad_axis(x, 1, pad_above, stride * tiles * rows)
    y_grad = pad_axis(y_grad, 1, shifts - 1 - groups_left_out, tiles * rows + shifts - 1)
    window = stride * (columns - 1) + size

    def add_tile(index: Array, total: Array) -> Array:
        picture, row = pictures * lax.div(index, tiles), rows * lax.rem(index, tiles)
        x_tile_shape = (pictures, stride * rows, width, channels)
        x_tile = lax.dynamic_slice(x, (picture, stride * row, 0, 0), x_tile_shape)
        x_tile = pad_axis(x_tile, 2, pad, window)
        y_tile_shape = (pictures, rows + shifts - 1, columns, features)
        y_tile = lax.dynamic_slice(y_grad, (picture, row, 0, 0), y_tile_shape)
        patches = [
            x_tile[:, phase::stride, j : j + window - size + 1 : stride]
            for phase in range(stride)
            for j in range(size)
        ]
        shifted = [y_tile[:, first : first + rows] for first in reversed(range(shifts))]
        factors = jnp.concatenate(patches, axis=-1), jnp.concatenate(shifted, axis=-1)
        return total + jnp.tensordot(*factors, axes=((0, 1, 2), (0, 1, 2)), precision="highest")

    # Zero, computed from both inputs: `shard_map` requires a loop's initial state to vary over the
    # same mesh axes as its later states.
    zero = (0 * (x[0, 0, 0, 0] > y_grad[0, 0, 0, 0])).astype(x.dtype)
    total = jnp.full((stride * size * channels, shifts * features), zero)
    total = lax.fori_loop(0, batch // pictures * tiles, add_tile, total)
    # Row i of the kernel is shift i // stride in phase i % stride.
    by_row = total.reshape(stride, size, channels, shifts, features).transpose(3, 0, 1, 2, 4)
    return by_row.reshape(shifts * stride, size, channels, features)[:size]
