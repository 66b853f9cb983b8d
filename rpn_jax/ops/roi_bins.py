"""Bins of RoIAlign: where the samples of a box lie, and the weights that they give to cells."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

MAX_SAMPLES_A_CELL = 6
"""Samples of one bin that are tried for one cell. Samples of a bin are more than half a cell apart,
so at most four lie less than one cell away from it; two more allow for rounding."""


class Axis(NamedTuple):
    """Bins of R boxes along the rows or the columns of their maps. Coordinates are in cells."""

    start: Float[Array, " R"]
    """Coordinate at which the first bin starts."""
    bin_size: Float[Array, " R"]
    """Length of a bin."""
    samples: Float[Array, " R"]
    """Number of samples in a bin: a whole number, 0 for a box of no length."""
    cells: Int[Array, " R"]
    """Number of rows or columns of the map."""
    first: Int[Array, " R"]
    """First cell with a weight."""
    span: Int[Array, " R"]
    """Number of cells from the first to the last one with a weight; 0 if no sample counts."""


class Boxes(NamedTuple):
    """R boxes, each on one map: a level of a picture's pyramid."""

    picture: Int[Array, " R"]
    """Index of the picture in the batch."""
    level: Int[Array, " R"]
    """Index of the level."""
    rows: Axis
    columns: Axis


def varying_zeros(boxes: Boxes, *shape: int) -> Float[Array, "*shape"]:
    """Return float32 zeros that are computed from the boxes.

    `shard_map` requires a loop's initial state to vary over the same mesh axes as its later states.
    """
    return jnp.zeros(shape, jnp.float32) + (0 * boxes.level[0]).astype(jnp.float32)


def bins_along(
    low: Float[Array, " R"], high: Float[Array, " R"], cells: Int[Array, " R"], size: int
) -> Axis:
    """Return the bins between two coordinates, in the reference's order of float32 operations."""
    start = low - 0.5
    length = jnp.maximum(high - 0.5 - start, 0.0)
    # Compilers replace a division by a constant with a product, which rounds twice. So the divisor
    # is made of data.
    bin_size = length / jnp.where(cells > 0, jnp.float32(size), jnp.float32(1))
    samples = _samples(length, bin_size, size)
    half_step = 0.5 * bin_size / jnp.maximum(samples, 1.0)
    first_sample, last_sample = start + half_step, start + length - half_step
    last_cell = (cells - 1).astype(jnp.float32)
    counts = (samples > 0) & (last_sample >= -1.0) & (first_sample <= last_cell + 2.0)
    # Rounding may put a sample one cell further out than computed here, so leave a cell's margin.
    first = jnp.clip(jnp.floor(first_sample) - 1, 0, last_cell).astype(jnp.int32)
    last = jnp.clip(jnp.floor(last_sample) + 2, 0, last_cell).astype(jnp.int32)
    return Axis(start, bin_size, samples, cells, first, jnp.where(counts, last - first + 1, 0))


def _samples(
    length: Float[Array, " R"], bin_size: Float[Array, " R"], size: int
) -> Float[Array, " R"]:
    """Return ceil(length / size), exactly: NVIDIA GPUs may divide with an error in the last bit."""
    samples = jnp.ceil(bin_size)
    samples = jnp.where((samples - 1) * size >= length, samples - 1, samples)
    return jnp.where(samples * size < length, samples + 1, samples)


def axis_weights(axis: Axis, cells: Int[Array, "R T"], size: int) -> Float[Array, "R P T"]:
    """Return the weight of each cell in the mean of each bin's samples, along one axis.

    The weights are those of `bin_weights`, for the same cells in every bin.
    """
    return bin_weights(axis, cells[:, None], size)


def first_cells(axis: Axis, size: int) -> Int[Array, "R P"]:
    """Return the first cell of each bin that can have a weight, along one axis."""
    t = _bin_starts(axis, size)[..., 0] + (0.5 * axis.bin_size / _divisor(axis))[:, None]
    last_cell = (axis.cells - 1).astype(jnp.float32)[:, None]
    return jnp.clip(jnp.floor(t), 0, last_cell).astype(jnp.int32)


def cells_per_bin(axis: Axis) -> Int[Array, " R"]:
    """Return how many cells from the first one of a bin can have a weight, for each box."""
    divisor = _divisor(axis)
    between_samples = axis.bin_size * (divisor - 1) / divisor
    return jnp.ceil(between_samples).astype(jnp.int32) + 2


def cells_of_bins(
    axis: Axis, count: int, size: int
) -> tuple[Int[Array, "R P T"], Float[Array, "R P T"]]:
    """Return ``count`` cells from the first one of each bin, and their weights."""
    cells = first_cells(axis, size)[..., None] + jnp.arange(count, dtype=jnp.int32)
    weights = bin_weights(axis, cells, size)
    return jnp.minimum(cells, axis.cells[:, None, None] - 1), weights


# Under `jit`, JAX traces a function once for each set of shapes. Here that halves the tracing.
@partial(jax.jit, static_argnames="size")
def bin_weights(axis: Axis, cells: Int[Array, "R #P T"], size: int) -> Float[Array, "R P T"]:
    """Return the weight of cells in the mean of each bin's samples, along one axis.

    A sample at t lies between the cells floor(t) and floor(t) + 1. Samples outside [-1, cells] are
    worth 0 and still count in the mean; others beyond the first or last cell take that cell's
    value.
    """
    bin_size, samples = (x[:, None, None] for x in (axis.bin_size, axis.samples))
    number, cell = (x.astype(jnp.float32) for x in (axis.cells[:, None, None], cells))
    divisor = jnp.maximum(samples, 1.0)
    bin_start = _bin_starts(axis, size)
    step = jnp.maximum(bin_size / divisor, 1e-6)
    nearest = jnp.maximum(jnp.floor((cell - 1 - bin_start) / step - 0.5), 0.0)
    total = jnp.zeros(nearest.shape, jnp.float32)
    for offset in range(MAX_SAMPLES_A_CELL):
        k = nearest + offset
        t = bin_start + (k + 0.5) * bin_size / divisor
        exists = (k >= 0) & (k < samples) & (t >= -1.0) & (t <= number)
        t = jnp.maximum(t, 0.0)
        low = jnp.floor(t)
        fraction = t - low
        between = jnp.where(cell == low, 1 - fraction, jnp.where(cell == low + 1, fraction, 0.0))
        at_end = (cell == number - 1).astype(jnp.float32)
        weight = jnp.where(low >= number - 1, at_end, between)
        total = total + jnp.where(exists, weight, 0.0)
    return total / divisor


def sum_cells(
    cells: Float[Array, "cells C"],
    row_starts: Int[Array, "R P I"],
    columns: Int[Array, "R P J"],
    row_weights: Float[Array, "R P I"],
    column_weights: Float[Array, "R P J"],
) -> Float[Array, "R P P C"]:
    """Return the weighted sum of I rows and J columns of cells in each bin, in float32.

    Args:
      cells: the cells of all maps. A place beyond the last one reads the last one.
      row_starts: place of the first cell of each row.
      columns: the columns, counted from the first cell of a row.
      row_weights: weights of the rows.
      column_weights: weights of the columns.
    """
    rows_apart = zip(*(jnp.unstack(x, axis=-1) for x in (row_starts, row_weights)), strict=True)
    columns_apart = zip(*(jnp.unstack(x, axis=-1) for x in (columns, column_weights)), strict=True)
    total = jnp.zeros((), jnp.float32)
    for row, column in itertools.product(rows_apart, columns_apart):
        total = total + _weighted_cells(cells, *row, *column)
    return total


@jax.jit
def _weighted_cells(
    cells: Float[Array, "cells C"],
    row_starts: Int[Array, "R P"],
    row_weights: Float[Array, "R P"],
    columns: Int[Array, "R P"],
    column_weights: Float[Array, "R P"],
) -> Float[Array, "R P P C"]:
    """Return one cell of each bin, multiplied with its weight."""
    places = row_starts[:, :, None] + columns[:, None, :]
    weights = row_weights[:, :, None] * column_weights[:, None, :]
    values = cells.at[places].get(mode="clip", wrap_negative_indices=False)
    return weights[..., None] * values.astype(jnp.float32)


def _bin_starts(axis: Axis, size: int) -> Float[Array, "R P 1"]:
    bins = jnp.arange(size, dtype=jnp.float32)[:, None]
    # The maximum keeps compilers from fusing the product with the sum, which would round once.
    return axis.start[:, None, None] + jnp.maximum(bins * axis.bin_size[:, None, None], 0.0)


def _divisor(axis: Axis) -> Float[Array, " R"]:
    return jnp.maximum(axis.samples, 1.0)
