"""RoIAlign on a CPU: one box after the other, over the tiles that the box covers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from rpn_jax.ops.roi_bins import Axis, Boxes, axis_weights, varying_zeros

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

TILE = 16
"""Side of a tile, cells."""


def pool_box_by_box(
    levels: tuple[Float[Array, "B Hl Wl C"], ...],
    boxes: Boxes,
    size: int,
    precision: lax.Precision,
) -> Float[Array, "R P P C"]:
    """Pool each box from its level."""
    order, ends = _by_level(boxes, len(levels))
    channels = levels[0].shape[-1]
    pooled = varying_zeros(boxes, len(boxes.level), size, size, channels)
    nothing = varying_zeros(boxes, size, size, channels)
    for index, level in enumerate(levels):

        def pool_box(place: Int[Array, ""], pooled: Array, level: Array = level) -> Array:
            number = order[place]
            box = _one(boxes, number)

            def add_tile(
                tile: Int[Array, ""], total: Float[Array, "P P C"]
            ) -> Float[Array, "P P C"]:
                corner, row_weights, column_weights = _tile(box, tile, level, size)
                shape = (1, row_weights.shape[1], column_weights.shape[1], channels)
                window = lax.dynamic_slice(level, corner, shape)[0].astype(jnp.float32)
                by_row = jnp.einsum("ph,hwc->pwc", row_weights, window, precision=precision)
                return total + _columns(column_weights, by_row, precision)

            total = lax.fori_loop(0, _tiles(box, level), add_tile, nothing)
            return lax.dynamic_update_index_in_dim(pooled, total, number, axis=0)

        pooled = lax.fori_loop(ends[index], ends[index + 1], pool_box, pooled)
    return pooled.astype(levels[0].dtype)


def gradient_box_by_box(
    levels: tuple[Float[Array, "B Hl Wl C"], ...],
    boxes: Boxes,
    grad: Float[Array, "R P P C"],
    size: int,
    precision: lax.Precision,
) -> tuple[Float[Array, "B Hl Wl C"], ...]:
    """Return the gradients of the levels: each box adds to the tiles that it covers."""
    order, ends = _by_level(boxes, len(levels))
    grads = []
    for index, level in enumerate(levels):

        def add_box(place: Int[Array, ""], total: Array, level: Array = level) -> Array:
            number = order[place]
            box, box_grad = _one(boxes, number), grad[number].astype(jnp.float32)

            def add_tile(tile: Int[Array, ""], total: Array) -> Array:
                corner, row_weights, column_weights = _tile(box, tile, level, size)
                by_row = jnp.einsum("pqc,qw->pwc", box_grad, column_weights, precision=precision)
                product = jnp.einsum("ph,pwc->hwc", row_weights, by_row, precision=precision)
                before = lax.dynamic_slice(total, corner, (1, *product.shape))
                return lax.dynamic_update_slice(total, before + product[None], corner)

            return lax.fori_loop(0, _tiles(box, level), add_tile, total)

        start = varying_zeros(boxes, *level.shape)
        total = lax.fori_loop(ends[index], ends[index + 1], add_box, start)
        grads.append(total.astype(level.dtype))
    return tuple(grads)


def _columns(
    weights: Float[Array, "Q T"], by_row: Float[Array, "P T C"], precision: lax.Precision
) -> Float[Array, "P Q C"]:
    """Multiply every row of bins by the same weights, as one product for each row.

    As a product with P T rows, XLA would transpose ``by_row`` before and the result after it.
    """
    batch = jnp.broadcast_to(weights, (len(by_row), *weights.shape))
    return jnp.matmul(batch, by_row, precision=precision)


def _by_level(boxes: Boxes, levels: int) -> tuple[Int[Array, " R"], Int[Array, " levels+1"]]:
    """Return the boxes in order of their levels, and where each level starts and ends there.

    Boxes of a level are in order of their place, so that neighbours find their cells in the cache.
    """
    band = boxes.rows.first // TILE
    order = jnp.lexsort((boxes.columns.first, band, boxes.picture, boxes.level)).astype(jnp.int32)
    ends = jnp.searchsorted(boxes.level[order], jnp.arange(levels + 1)).astype(jnp.int32)
    return order, ends


def _one(boxes: Boxes, number: Int[Array, ""]) -> Boxes:
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, number, 1), boxes)


def _sides(level: Float[Array, "B H W C"]) -> tuple[int, int]:
    """Return the (rows, columns) of a tile, which must fit in the map."""
    return min(TILE, level.shape[1]), min(TILE, level.shape[2])


def _tiles(box: Boxes, level: Float[Array, "B H W C"]) -> Int[Array, ""]:
    rows, columns = _sides(level)
    return (-(-box.rows.span // rows) * -(-box.columns.span // columns))[0]


def _tile(
    box: Boxes, tile: Int[Array, ""], level: Float[Array, "B H W C"], size: int
) -> tuple[tuple[Array, Array, Array, int], Float[Array, "P T"], Float[Array, "P T"]]:
    """Return the first corner of a tile in the level, and the weights of its rows and columns."""
    rows, columns = _sides(level)
    down, right = jnp.divmod(tile, -(-box.columns.span[0] // columns))
    row, row_weights = _place(box.rows, down * rows, rows, size)
    column, column_weights = _place(box.columns, right * columns, columns, size)
    return (box.picture[0], row, column, 0), row_weights, column_weights


def _place(
    axis: Axis, offset: Int[Array, ""], length: int, size: int
) -> tuple[Int[Array, ""], Float[Array, "P T"]]:
    """Return the first cell of a tile and the weights of its cells along one axis.

    A tile at the border is moved inside the map. The cells that it shares with the tile before it
    have no weight.
    """
    wanted = axis.first[0] + offset
    first = jnp.minimum(wanted, axis.cells[0] - length)
    cells = first + jnp.arange(length, dtype=jnp.int32)
    weights = axis_weights(axis, cells[None], size)[0]
    return first, jnp.where(cells >= wanted, weights, 0.0)
