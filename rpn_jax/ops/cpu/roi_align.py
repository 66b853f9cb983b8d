"""RoIAlign on a CPU: weighted sums over the cells of each bin, or products over larger tiles."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from rpn_jax.ops.roi_bins import (
    Axis,
    Boxes,
    axis_weights,
    cells_of_bins,
    cells_per_bin,
    sum_cells,
    varying_zeros,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

TILE = 16
"""Side of a tile, cells."""
CELLS_OF_BIN = ((5, 5), (8, 8))
"""Largest (rows, columns) of cells that a bin reads in each group of boxes. A square box has bins
of 2 to 4 cells, which read 3 to 6 cells along each side. Each entry adds to the time of
compilation, once for each array of `_cells_of_levels`."""
BOXES_A_CHUNK = 16
"""Boxes in one round of a group's loop."""


def pool_boxes(
    levels: tuple[Float[Array, "B _ _ C"], ...],
    boxes: Boxes,
    size: int,
    precision: lax.Precision,
) -> Float[Array, "R P P C"]:
    """Pool each box from its level.

    Most bins read few cells. Their weighted sums are one fused loop over the channels. The boxes
    are ordered by the number of cells, and each group of `CELLS_OF_BIN` has its own loop. Boxes
    with larger bins are pooled by matrix products.
    """
    group = _group(boxes)
    sources = _cells_of_levels(levels, boxes)
    part = len(sources) * group + jnp.minimum(boxes.level, len(sources) - 1)
    place = (boxes.columns.first, boxes.rows.first // TILE, boxes.picture)
    order = jnp.lexsort((*place, part)).astype(jnp.int32)
    # The places behind the last box write to a box that does not exist, which does nothing.
    padded_order = jnp.pad(order, (0, BOXES_A_CHUNK), constant_values=len(order))
    parts = len(sources) * len(CELLS_OF_BIN)
    ends = jnp.searchsorted(part[order], jnp.arange(parts + 1)).astype(jnp.int32)

    pooled = varying_zeros(boxes, len(order), size, size, levels[0].shape[-1])
    for index, (shape, (cells, first_cell)) in enumerate(itertools.product(CELLS_OF_BIN, sources)):

        def pool_chunk(
            number: Int[Array, ""],
            pooled: Array,
            index: int = index,
            shape: tuple[int, int] = shape,
            cells: Array = cells,
            first_cell: Array = first_cell,
        ) -> Array:
            # The last chunk reaches into the next part, whose loop then replaces the results.
            start = ends[index] + number * BOXES_A_CHUNK
            chunk = lax.dynamic_slice_in_dim(padded_order, start, BOXES_A_CHUNK)
            some, first = jax.tree.map(lambda x: x[chunk], (boxes, first_cell))
            sums = _weighted_sums(cells, first, some, size, shape)
            return pooled.at[chunk].set(sums, mode="drop", unique_indices=True)

        chunks = -(-(ends[index + 1] - ends[index]) // BOXES_A_CHUNK)
        pooled = lax.fori_loop(0, chunks, pool_chunk, pooled)
    is_left = group == len(CELLS_OF_BIN)
    return pool_box_by_box(levels, boxes, is_left, pooled, precision).astype(levels[0].dtype)


def _group(boxes: Boxes) -> Int[Array, " R"]:
    """Return the first entry of `CELLS_OF_BIN` that holds each box's bins, or their number."""
    rows, columns = cells_per_bin(boxes.rows), cells_per_bin(boxes.columns)
    group = jnp.full_like(rows, len(CELLS_OF_BIN))
    for index, (most_rows, most_columns) in reversed([*enumerate(CELLS_OF_BIN)]):
        group = jnp.where((rows <= most_rows) & (columns <= most_columns), index, group)
    return group


def _cells_of_levels(
    levels: tuple[Float[Array, "B _ _ C"], ...], boxes: Boxes
) -> list[tuple[Float[Array, "_ C"], Int[Array, " R"]]]:
    """Return the cells of the finest level, those of the others, and each box's first cell there.

    Each loop reads one array. The finest level is the largest one, so it is not copied to be joined
    with the others. Without other levels there is one array.
    """
    flat = [jnp.asarray(level).reshape(-1, level.shape[-1]) for level in levels]
    size = jnp.array([x.shape[1] * x.shape[2] for x in levels], jnp.int32)
    in_level = boxes.picture * size[boxes.level]
    if len(levels) == 1:
        return [(flat[0], in_level)]
    starts = jnp.cumsum(jnp.array([0, 0] + [len(x) for x in flat[1:-1]], jnp.int32))
    return [(flat[0], in_level), (jnp.concatenate(flat[1:]), starts[boxes.level] + in_level)]


def _weighted_sums(
    cells: Float[Array, "cells C"],
    first_cell: Int[Array, " M"],
    boxes: Boxes,
    size: int,
    shape: tuple[int, int],
) -> Float[Array, "M P P C"]:
    """Return the weighted sum of ``shape`` (rows, columns) of cells in each bin."""
    row_count, column_count = shape
    rows, row_weights = cells_of_bins(boxes.rows, row_count, size)
    columns, column_weights = cells_of_bins(boxes.columns, column_count, size)
    row_starts = first_cell[:, None, None] + rows * boxes.columns.cells[:, None, None]
    # A box of another part can lie outside of this array. Its sums are replaced.
    return sum_cells(cells, row_starts, columns, row_weights, column_weights)


def pool_box_by_box(
    levels: tuple[Float[Array, "B _ _ C"], ...],
    boxes: Boxes,
    is_wanted: Bool[Array, " R"],
    pooled: Float[Array, "R P P C"],
    precision: lax.Precision,
) -> Float[Array, "R P P C"]:
    """Replace the rows of wanted boxes in ``pooled``, one box after the other."""
    order, ends = _by_level(boxes, is_wanted, len(levels))
    size, channels = pooled.shape[2:]
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
    return pooled


def gradient_box_by_box(
    levels: tuple[Float[Array, "B _ _ C"], ...],
    boxes: Boxes,
    grad: Float[Array, "R P P C"],
    size: int,
    precision: lax.Precision,
) -> tuple[Float[Array, "B _ _ C"], ...]:
    """Return the gradients of the levels: each box adds to the tiles that it covers."""
    order, ends = _by_level(boxes, jnp.ones_like(boxes.level, bool), len(levels))
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


def _by_level(
    boxes: Boxes, is_wanted: Bool[Array, " R"], levels: int
) -> tuple[Int[Array, " R"], Int[Array, " _"]]:
    """Return the wanted boxes in order of their levels, and where each level starts and ends there.

    Boxes of a level are in order of their place, so that neighbours find their cells in the cache.
    """
    level = jnp.where(is_wanted, boxes.level, levels)
    band = boxes.rows.first // TILE
    order = jnp.lexsort((boxes.columns.first, band, boxes.picture, level)).astype(jnp.int32)
    ends = jnp.searchsorted(level[order], jnp.arange(levels + 1)).astype(jnp.int32)
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
) -> tuple[tuple[Array, Array, Array, Array], Float[Array, "P T"], Float[Array, "P U"]]:
    """Return the first corner of a tile in the level, and the weights of its rows and columns."""
    rows, columns = _sides(level)
    down, right = jnp.divmod(tile, -(-box.columns.span[0] // columns))
    row, row_weights = _place(box.rows, down * rows, rows, size)
    column, column_weights = _place(box.columns, right * columns, columns, size)
    # A plain 0 would be an int64 with jax_enable_x64, and all indices must have one type.
    return (box.picture[0], row, column, jnp.zeros_like(row)), row_weights, column_weights


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
