"""Pieces of a batch that are worked on one after the other, so that they stay in the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def tile_size(batch: int, rows: int, columns: int, capacity: int) -> tuple[int, int]:
    """Pictures, and rows of each, to work on at a time.

    Several whole pictures where they fit, else some rows of one; the last tile of a picture may
    reach below it.

    Args:
      batch: pictures in all; what is returned divides them.
      rows: of a picture.
      columns: of a picture; a row is never cut.
      capacity: pixels that a tile should hold at most.
    """
    pictures = capacity // (rows * columns)
    if pictures > 0:
        return max(n for n in range(1, min(batch, pictures) + 1) if batch % n == 0), rows
    most = max(capacity // columns, 1)
    return 1, min(range(most, most // 2, -1), key=lambda tile_rows: -rows % tile_rows)


def pad_axis(x: Float[Array, "..."], axis: int, before: int, length: int) -> Float[Array, "..."]:
    """Zeros before an axis and as many behind as make up its length, or cut off behind."""
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (before, length - before - x.shape[axis], 0)
    return lax.pad(x, jnp.zeros((), x.dtype), padding)
