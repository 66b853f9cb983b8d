"""RoIAlign (He et al. 2017, section 3): features of boxes, pooled from the levels of a pyramid.

Same results as mmcv's ``RoIAlign(aligned=True, sampling_ratio=0, pool_mode='avg')``. A bin averages
bilinear samples on a regular grid, so the average is separable. With F the map of a level and C
channels, ``pooled = Wy F Wx^T`` for each channel, where row p of Wy [P, H] holds the mean of the
one-dimensional bilinear weights of the samples in row p of the bins, and Wx [P, W] those of the
columns. The number of samples is therefore free: long boxes have up to 48 in a bin.

Wy and Wx are zero outside the box. So the products run over tiles of the map that the box covers:
memory depends on the size of a tile and not on the size of the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from rpn_jax.errors import UserError
from rpn_jax.ops.checks import check_shapes
from rpn_jax.ops.cpu.roi_align import gradient_box_by_box, pool_boxes
from rpn_jax.ops.roi_bins import (
    Boxes,
    axis_weights,
    bins_along,
    cells_of_bins,
    cells_per_bin,
    sum_cells,
    varying_zeros,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

FINEST_SCALE = 56.0
"""Boxes with sqrt(area) below twice this many pixels are pooled from the finest level."""
CELLS_OF_BIN = 6
"""Cells along each side of a bin that are summed one by one. A square box has bins of 2 to 4 cells,
which read 3 to 6 cells."""
TILE = 32
"""Side of a tile for larger bins, cells."""
BOXES_A_CHUNK = 128
"""Boxes whose tiles are in memory at the same time: 67 MB in bfloat16 with 256 channels."""
BOXES_A_GRADIENT_CHUNK = 64
"""Boxes whose gradients are multiplied at the same time: 154 MB in float32 with 256 channels and a
map of 336 columns."""


def assign_levels(boxes_xyxy: Float[Array, "*N 4"], levels: int) -> Int[Array, "*N"]:
    """Return the level of the pyramid that each box is pooled from (Lin et al. 2016, equation 1).

    The level is floor(log2(sqrt(width * height) / 56 + 1e-6)), clipped to 0 and ``levels - 1``, as
    int32. So sides of 112, 224 and 448 pixels start levels 1, 2 and 3.

    Args:
      boxes_xyxy: pixels of the resized picture. They are converted to float32.
      levels: number of levels, finest first.
    """
    boxes_xyxy = boxes_xyxy.astype(jnp.float32)
    sizes = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    scale = jnp.sqrt(jnp.maximum(sizes[..., 0] * sizes[..., 1], 0.0))
    level = jnp.floor(jnp.log2(scale / FINEST_SCALE + 1e-6))
    return jnp.clip(jnp.nan_to_num(level), 0, levels - 1).astype(jnp.int32)


def roi_align(
    levels: tuple[Float[Array, "B _ _ C"], ...],
    boxes_xyxy: Float[Array, "B N 4"],
    strides: Sequence[int],
    size: int,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> Float[Array, "B N P P C"]:
    """Pool the features of boxes, each from the level of `assign_levels`.

    Differentiable in ``levels`` and not in the boxes, as the reference. Results and gradients have
    the same bits in every run.

    Args:
      levels: feature maps, finest first. Coordinates reach over the whole map, padding included.
      boxes_xyxy: pixels of the resized picture. A box without area gives zeros, so zeros may stand
        for boxes that do not exist.
      strides: pixels between cells of each level.
      size: number of bins P along each side.
      precision: of the products.

    Returns:
      Pooled features in the dtype of the levels; rows of bins before columns.

    Raises:
      UserError: the number of levels differs from that of the strides, or the arrays do not fit
        each other.
    """
    _check_levels(levels, boxes_xyxy, strides)
    batch, count = boxes_xyxy.shape[:2]
    if batch * count == 0:
        return jnp.zeros((batch, count, size, size, levels[0].shape[-1]), levels[0].dtype)
    flat_boxes = lax.stop_gradient(boxes_xyxy.astype(jnp.float32)).reshape(-1, 4)
    level = assign_levels(flat_boxes, len(levels))
    shapes = jnp.array([x.shape[1:3] for x in levels], jnp.int32)[level]
    scale = jnp.array([1 / stride for stride in strides], jnp.float32)[level]
    boxes = Boxes(
        picture=jnp.repeat(jnp.arange(batch, dtype=jnp.int32), count),
        level=level,
        rows=bins_along(flat_boxes[:, 1] * scale, flat_boxes[:, 3] * scale, shapes[:, 0], size),
        columns=bins_along(flat_boxes[:, 0] * scale, flat_boxes[:, 2] * scale, shapes[:, 1], size),
    )
    pooled = _pool(levels, boxes, size, precision)
    return pooled.reshape(batch, count, size, size, -1)


def _check_levels(
    levels: tuple[Float[Array, "B _ _ C"], ...],
    boxes_xyxy: Float[Array, "B N 4"],
    strides: Sequence[int],
) -> None:
    if len(levels) != len(strides):
        raise UserError(
            f"strides = {tuple(strides)}: there are {len(levels)} levels, but {len(strides)} "
            "strides. Give one stride for each level."
        )
    maps = {f"levels[{index}]": (level, "B _ _ C") for index, level in enumerate(levels)}
    check_shapes("roi_align", {"boxes_xyxy": (boxes_xyxy, "B N 4"), **maps})


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _pool(
    levels: tuple[Float[Array, "B _ _ C"], ...],
    boxes: Boxes,
    size: int,
    precision: lax.Precision,
) -> Float[Array, "R P P C"]:
    return lax.platform_dependent(
        levels,
        boxes,
        cpu=partial(pool_boxes, size=size, precision=precision),
        default=partial(pool_in_chunks, size=size, precision=precision),
    )


def _pool_backward(
    size: int,
    precision: lax.Precision,
    saved: tuple[tuple[Float[Array, "B _ _ C"], ...], Boxes],
    grad: Float[Array, "R P P C"],
) -> tuple[tuple[Float[Array, "B _ _ C"], ...], None]:
    levels, boxes = saved
    grads = lax.platform_dependent(
        levels,
        boxes,
        grad,
        cpu=partial(gradient_box_by_box, size=size, precision=precision),
        default=partial(gradient_by_products, size=size, precision=precision),
    )
    return grads, None


_pool.defvjp(
    lambda levels, boxes, *static: (_pool(levels, boxes, *static), (levels, boxes)), _pool_backward
)


def pool_in_chunks(
    levels: tuple[Float[Array, "B _ _ C"], ...],
    boxes: Boxes,
    size: int,
    precision: lax.Precision,
) -> Float[Array, "R P P C"]:
    """Pool all boxes at the same time: the form for accelerators.

    Bins of boxes that are about square read at most `CELLS_OF_BIN` cells along each side. Their
    weighted sums are one kernel over the bins and channels of all boxes. The boxes with larger bins
    are then pooled by matrix products over tiles, those with the most tiles first.
    """
    total = len(boxes.level)
    chunk = min(BOXES_A_CHUNK, total)
    cells, first_cell = _flat_cells(levels, boxes)
    pooled = _weighted_sums(cells, first_cell, boxes, size).astype(cells.dtype)
    across = -(-boxes.columns.span // TILE)
    bins = jnp.maximum(cells_per_bin(boxes.rows), cells_per_bin(boxes.columns))
    tiles = jnp.where(bins > CELLS_OF_BIN, across * -(-boxes.rows.span // TILE), 0)
    order = jnp.argsort(-tiles, stable=True).astype(jnp.int32)
    # The other boxes are done. They get the place of a box that does not exist, where writing does
    # nothing.
    order = jnp.where(tiles[order] > 0, order, total)
    order = jnp.pad(order, (0, chunk), constant_values=total)

    def pool_chunk(index: Int[Array, ""], pooled: Array) -> Array:
        chosen = lax.dynamic_slice_in_dim(order, index * chunk, chunk)
        some, first, across_, tiles_ = jax.tree.map(
            lambda x: x[jnp.minimum(chosen, total - 1)], (boxes, first_cell, across, tiles)
        )

        def add_tile(number: Int[Array, ""], sums: Array) -> Array:
            down, right = jnp.divmod(number, jnp.maximum(across_, 1))
            windows, rows, columns = _windows(cells, first, some, down * TILE, right * TILE)
            exists = (number < tiles_)[:, None, None]
            row_weights = jnp.where(exists, axis_weights(some.rows, rows, size), 0.0)
            column_weights = axis_weights(some.columns, columns, size)
            return sums + _products(windows, row_weights, column_weights, precision)

        zeros = varying_zeros(boxes, chunk, size, size, cells.shape[-1])
        sums = lax.fori_loop(0, tiles_[0], add_tile, zeros)
        return pooled.at[chosen].set(sums.astype(pooled.dtype), mode="drop", unique_indices=True)

    chunks = -(-jnp.sum(tiles > 0) // chunk)
    return lax.fori_loop(0, chunks, pool_chunk, pooled)


def _windows(
    cells: Float[Array, "cells C"],
    first_cell: Int[Array, " M"],
    boxes: Boxes,
    row: Int[Array, " M"],
    column: Int[Array, " M"],
) -> tuple[Float[Array, "M T T C"], Int[Array, "M T"], Int[Array, "M T"]]:
    """Return a tile of each box, ``row`` and ``column`` cells from its corner, and its cells."""
    steps = jnp.arange(TILE, dtype=jnp.int32)
    rows = (boxes.rows.first + row)[:, None] + steps
    columns = (boxes.columns.first + column)[:, None] + steps
    inside_rows = jnp.minimum(rows, boxes.rows.cells[:, None] - 1)
    starts = first_cell[:, None] + inside_rows * boxes.columns.cells[:, None] + columns[:, :1]
    windows = jax.vmap(jax.vmap(lambda at: lax.dynamic_slice_in_dim(cells, at, TILE)))(starts)
    return windows, rows, columns


def _weighted_sums(
    cells: Float[Array, "cells C"], first_cell: Int[Array, " R"], boxes: Boxes, size: int
) -> Float[Array, "R P P C"]:
    """Return the weighted sums of `CELLS_OF_BIN` rows and columns of cells in each bin."""
    rows, row_weights = cells_of_bins(boxes.rows, CELLS_OF_BIN, size)
    columns, column_weights = cells_of_bins(boxes.columns, CELLS_OF_BIN, size)
    row_starts = first_cell[:, None, None] + rows * boxes.columns.cells[:, None, None]
    # The barrier keeps these out of the kernel of the sums, where each channel could compute them.
    row_starts, columns, row_weights, column_weights = lax.optimization_barrier(
        (row_starts, columns, row_weights, column_weights)
    )
    return sum_cells(cells, row_starts, columns, row_weights, column_weights)


def _flat_cells(
    levels: tuple[Float[Array, "B _ _ C"], ...], boxes: Boxes
) -> tuple[Float[Array, "cells C"], Int[Array, " R"]]:
    """Return the cells of all maps in one array, and the place of each box's map there.

    A tile may reach beyond the last cell, so the array ends with a tile's width of zeros.
    """
    channels = levels[0].shape[-1]
    flat = [level.reshape(-1, channels) for level in levels]
    cells = jnp.concatenate([*flat, jnp.zeros((TILE, channels), flat[0].dtype)])
    ends = jnp.cumsum(jnp.array([0] + [len(x) for x in flat[:-1]], jnp.int32))
    size = jnp.array([x.shape[1] * x.shape[2] for x in levels], jnp.int32)
    first = ends[boxes.level] + boxes.picture * size[boxes.level]
    return cells, first


def _products(
    windows: Float[Array, "M T T C"],
    row_weights: Float[Array, "M P T"],
    column_weights: Float[Array, "M P T"],
    precision: lax.Precision,
) -> Float[Array, "M P P C"]:
    kwargs = {"precision": precision, "preferred_element_type": jnp.float32}
    dtype = windows.dtype
    by_row = jnp.einsum("mph,mhwc->mpwc", row_weights.astype(dtype), windows, **kwargs)
    return jnp.einsum(
        "mqw,mpwc->mpqc", column_weights.astype(dtype), by_row.astype(dtype), **kwargs
    )


def gradient_by_products(
    levels: tuple[Float[Array, "B _ _ C"], ...],
    boxes: Boxes,
    grad: Float[Array, "R P P C"],
    size: int,
    precision: lax.Precision,
) -> tuple[Float[Array, "B _ _ C"], ...]:
    """Return the gradients of the levels as products over all boxes: the form for accelerators.

    ``dF = sum over boxes of Wy^T G Wx`` is a few large products for each picture and level, over
    the chunks that contain boxes of that level. It costs more operations than sums over the covered
    tiles, but needs no atomics, whose order would change from run to run.
    """
    batch = levels[0].shape[0]
    count = len(boxes.level) // batch
    chunk = min(BOXES_A_GRADIENT_CHUNK, count)

    def in_order(x: Array) -> Array:
        """[B * N, ...] to [B, N, ...], padded to whole chunks."""
        x = x.reshape(batch, count, *x.shape[1:])
        return jnp.pad(x, [(0, 0), (0, -count % chunk)] + [(0, 0)] * (x.ndim - 2))

    padded, grad = jax.tree.map(in_order, (boxes, grad))
    exists = jnp.arange(padded.level.shape[1]) < count
    level_of = jnp.where(exists, padded.level, len(levels))
    order = jnp.argsort(level_of, axis=1, stable=True)
    level_of = jnp.take_along_axis(level_of, order, axis=1)

    def of_level(index: int, level: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        _, height, width, channels = level.shape
        rows = jnp.broadcast_to(jnp.arange(height, dtype=jnp.int32), (chunk, height))
        columns = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (chunk, width))

        def of_picture(
            picture: tuple[Boxes, Array, Array, Array],
        ) -> Float[Array, "H W C"]:
            boxes_, grad_, order_, level_ = picture
            first, end = jnp.sum(level_ < index), jnp.sum(level_ <= index)

            def add_chunk(number: Int[Array, ""], total: Array) -> Array:
                chosen = lax.dynamic_slice_in_dim(order_, number * chunk, chunk)
                some, grad = jax.tree.map(lambda x: x[chosen], (boxes_, grad_))
                here = lax.dynamic_slice_in_dim(level_, number * chunk, chunk) == index
                row_weights = axis_weights(some.rows, rows, size)
                row_weights = jnp.where(here[:, None, None], row_weights, 0.0).astype(grad.dtype)
                column_weights = axis_weights(some.columns, columns, size).astype(grad.dtype)
                kwargs = {"precision": precision, "preferred_element_type": jnp.float32}
                # One product for each row of bins has its result in the order that is needed next.
                of_row = jnp.broadcast_to(column_weights[:, None], (chunk, size, size, width))
                by_row = jnp.einsum("npqc,npqw->npwc", grad, of_row, **kwargs).astype(grad.dtype)
                return total + jnp.einsum("nph,npwc->hwc", row_weights, by_row, **kwargs)

            start = varying_zeros(boxes, height, width, channels)
            return lax.fori_loop(first // chunk, -(-end // chunk), add_chunk, start)

        return lax.map(of_picture, (padded, grad, order, level_of)).astype(level.dtype)

    return tuple(of_level(index, level) for index, level in enumerate(levels))
