"""Tiles of a batch, which are computed one after the other so that each stays in the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def tile_size(batch: int, rows: int, columns: int, capacity: int) -> tuple[int, int]:
    """Return the size of a tile: a number of pictures, and of rows of each picture.

    A tile holds whole pictures if one fits, otherwise some rows of one picture. The last tile of a
    picture may extend below it.

    Args:
      batch: pictures in the batch. The returned number divides it.
      rows: rows of a picture.
      columns: columns of a picture. A row is never split.
      capacity: most pixels of a tile. A tile of one row may have more.
    """
    pictures = capacity // (rows * columns)
    if pictures > 0:
        return max(n for n in range(1, min(batch, pictures) + 1) if batch % n == 0), rows
    most = max(capacity // columns, 1)
    return 1, min(range(most, most // 2, -1), key=lambda tile_rows: -rows % tile_rows)


def pad_axis(x: Float[Array, "..."], axis: int, before: int, length: int) -> Float[Array, "..."]:
    """Pad an axis with ``before`` zeros at its start, then pad or crop its end to ``length``."""
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (before, length - before - x.shape[axis], 0)
    return lax.pad(x, jnp.zeros((), x.dtype), padding)
