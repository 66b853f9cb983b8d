"""The input of a 3x3 convolution at some cells of a pyramid.

Training computes the RPN head only at the cells of sampled anchors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

WINDOW = 3
"""Rows and columns of a window."""


def patches_3x3(
    levels: tuple[Float[Array, "B _ _ C"], ...], cells: Int[Array, "B S"]
) -> Float[Array, "B S 9*C"]:
    """Return the 3x3 window around each cell, row by row, with zeros beyond a level's border.

    A 3x3 convolution at these cells is the product with its kernel, reshaped to [9 * C, O]. The
    gradient of ``levels`` is summed in their dtype and always in the same order.

    Args:
      levels: feature maps of a pyramid, finest first.
      cells: flat cell indices, order level, row, column; distinct for each picture.
    """
    padded = [jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))) for x in levels]
    flat = jnp.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in padded], axis=1)
    windows = _windows([(x.shape[1], x.shape[2]) for x in levels], cells)
    return _take(flat, windows).reshape(*cells.shape, WINDOW**2 * flat.shape[-1])


def _windows(level_shapes: list[tuple[int, int]], cells: Int[Array, "B S"]) -> Int[Array, "B S 9"]:
    """Return flat indices of each window into the levels, which are padded by one on each side."""
    rows, widths = np.array(level_shapes).T
    ends = np.cumsum(rows * widths)
    ends_padded = np.cumsum((rows + 2) * (widths + 2))
    level = jnp.sum(cells[..., None] >= ends[:-1], axis=-1)
    first, first_padded = (jnp.asarray(np.r_[0, x[:-1]]) for x in (ends, ends_padded))
    width = jnp.asarray(widths)[level]
    row, column = jnp.divmod(cells - first[level], width)
    # The window starts one row above and one column to the left. The padding cancels this offset.
    corner = first_padded[level] + row * (width + 2) + column
    down, right = np.divmod(np.arange(WINDOW**2), WINDOW)
    return corner[..., None] + down * (width[..., None] + 2) + right


@jax.custom_vjp
def _take(flat: Float[Array, "B P C"], places: Int[Array, "B S n"]) -> Float[Array, "B S n C"]:
    pictures = jnp.arange(len(flat))[:, None, None]
    return flat.at[pictures, places].get(mode="promise_in_bounds")


def _take_backward(
    saved: tuple[Float[Array, "B P C"], Int[Array, "B S n"]], grad: Float[Array, "B S n C"]
) -> tuple[Float[Array, "B P C"], None]:
    # Windows overlap, but their n-th cells are distinct. Adding one n at a time avoids atomics on
    # GPUs, whose order changes from run to run.
    flat, places = saved
    total = jnp.zeros_like(flat)
    pictures = jnp.arange(len(flat))[:, None]
    for n in range(places.shape[-1]):
        total = total.at[pictures, places[..., n]].add(
            grad[:, :, n], mode="promise_in_bounds", unique_indices=True
        )
    return total, None


_take.defvjp(lambda flat, places: (_take(flat, places), (flat, places)), _take_backward)
