"""The gradient of a convolution's input as one matrix product."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def input_gradient_by_matmul(
    y_grad: Float[Array, "B h w O"],
    kernel: Float[Array, "k k I O"],
    height: int,
    width: int,
    stride: int,
) -> Float[Array, "B H W I"]:
    """Return the gradient of a convolution's input.

    ``x_grad[stride * row + i, stride * column + j] += kernel[i, j] @ y_grad[row, column]`` with x
    padded. One product computes all terms, then shifted arrays are summed. The kernel is read in
    its own order. A convolution would first flip it.

    Args:
      y_grad: gradient of the convolution's output, float32.
      kernel: float32 HWIO.
      height: rows H of the convolution's input, unpadded.
      width: columns W of it.
      stride: stride of the convolution, both ways. Its padding was ``k // 2`` on every side.
    """
    size, _, channels, features = kernel.shape
    batch, rows, columns, _ = y_grad.shape
    # XLA's CPU backend multiplies two matrices faster than arrays with more axes.
    factors = y_grad.reshape(-1, features), kernel.reshape(-1, features).T
    products = jnp.dot(*factors, precision="highest")
    by_tap = products.reshape(batch, rows, columns, size, size, channels)
    zero = jnp.zeros((), y_grad.dtype)

    def padding(tap: int, count: int, length: int) -> tuple[int, int, int]:
        first = tap - size // 2
        return first, length - first - stride * (count - 1) - 1, stride - 1

    def shifted(i: int, j: int) -> Float[Array, "B H W I"]:
        along_axes = (0, 0, 0), padding(i, rows, height), padding(j, columns, width), (0, 0, 0)
        return lax.pad(by_tap[:, :, :, i, j], zero, along_axes)

    return reduce(jnp.add, (shifted(i, j) for i in range(size) for j in range(size)))
