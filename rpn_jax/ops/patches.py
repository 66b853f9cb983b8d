"""What a 3x3 convolution reads at some cells of a pyramid: training needs no more of the head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

AROUND = 3
"""Cells of a window, both ways."""


def patches_3x3(
    levels: tuple[Float[Array, "B Hl Wl C"], ...], cells: Int[Array, "B S"]
) -> Float[Array, "B S 9C"]:
    """The nine cells around each of ``cells``, row by row, with zeros beyond a level's border.

    A 3x3 convolution at these cells is the product with its kernel, reshaped to [9 * C, O].

    The gradient by ``levels`` adds up in their dtype and in the same order every time.

    Args:
      levels: of a pyramid, finest first.
      cells: flat places, order level, row, column; those of a picture must be distinct.
    """
    padded = [jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))) for x in levels]
    flat = jnp.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in padded], axis=1)
    windows = _windows([(x.shape[1], x.shape[2]) for x in levels], cells)
    return _take(flat, windows).reshape(*cells.shape, AROUND**2 * flat.shape[-1])


def _windows(level_shapes: list[tuple[int, int]], cells: Int[Array, "B S"]) -> Int[Array, "B S 9"]:
    """Flat places of the cells around each cell in levels that are padded by one on each side."""
    rows, widths = np.array(level_shapes).T
    behind = np.cumsum(rows * widths)
    behind_padded = np.cumsum((rows + 2) * (widths + 2))
    level = jnp.sum(cells[..., None] >= behind[:-1], axis=-1)
    first, first_padded = (jnp.asarray(np.r_[0, ends[:-1]]) for ends in (behind, behind_padded))
    width = jnp.asarray(widths)[level]
    row, column = jnp.divmod(cells - first[level], width)
    # The window's first cell is one row above and one column to the left, which padding cancels.
    corner = first_padded[level] + row * (width + 2) + column
    down, right = np.divmod(np.arange(AROUND**2), AROUND)
    return corner[..., None] + down * (width[..., None] + 2) + right


@jax.custom_vjp
def _take(flat: Float[Array, "B P C"], places: Int[Array, "B S n"]) -> Float[Array, "B S n C"]:
    pictures = jnp.arange(len(flat))[:, None, None]
    return flat.at[pictures, places].get(mode="promise_in_bounds")


def _take_backward(
    saved: tuple[Float[Array, "B P C"], Int[Array, "B S n"]], grad: Float[Array, "B S n C"]
) -> tuple[Float[Array, "B P C"], None]:
    # Windows overlap, but cells at one place of theirs do not: so added up, GPUs need no atomics,
    # whose order changes from run to run.
    flat, places = saved
    total = jnp.zeros_like(flat)
    pictures = jnp.arange(len(flat))[:, None]
    for n in range(places.shape[-1]):
        total = total.at[pictures, places[..., n]].add(
            grad[:, :, n], mode="promise_in_bounds", unique_indices=True
        )
    return total, None


_take.defvjp(lambda flat, places: (_take(flat, places), (flat, places)), _take_backward)
