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

from rpn_jax.ops.cpu.roi_align import gradient_box_by_box, pool_boxes
from rpn_jax.ops.roi_bins import Boxes, axis_weights, bins_along, varying_zeros

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

FINEST_SCALE = 56.0
"""Boxes with sqrt(area) below twice this many pixels are pooled from the finest level."""
TILE = 32
"""Side of a tile, cells. A square box covers 14 to 28 cells of its level, so one tile holds it."""
BOXES_A_CHUNK = 128
"""Boxes whose tiles are in memory at the same time: 67 MB in bfloat16 with 256 channels."""
BOXES_A_GRADIENT_CHUNK = 64
"""Boxes whose gradients are multiplied at the same time: 154 MB in float32 with 256 channels and a
map of 336 columns."""


def assign_levels(boxes_xyxy: Float[Array, "*N 4"], levels: int) -> Int[Array, "*N"]:
    """Return the level of the pyramid that each box is pooled from (Lin et al. 2016, equation 1).

    The level is floor(log2(sqrt(width * height) / 56 + 1e-6)), clipped to 0 and ``levels - 1``. So
    sides of 112, 224 and 448 pixels start levels 1, 2 and 3.

    Args:
      boxes_xyxy: pixels of the resized picture.
      levels: number of levels, finest first.
    """
    sizes = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    scale = jnp.sqrt(sizes[..., 0] * sizes[..., 1])
    level = jnp.floor(jnp.log2(scale / FINEST_SCALE + 1e-6))
    return jnp.clip(jnp.nan_to_num(level), 0, levels - 1).astype(jnp.int32)


def roi_align(
    levels: tuple[Float[Array, "B Hl Wl C"], ...],
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
    """
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


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _pool(
    levels: tuple[Float[Array, "B Hl Wl C"], ...],
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
    saved: tuple[tuple[Float[Array, "B Hl Wl C"], ...], Boxes],
    grad: Float[Array, "R P P C"],
) -> tuple[tuple[Float[Array, "B Hl Wl C"], ...], None]:
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
    levels: tuple[Float[Array, "B Hl Wl C"], ...],
    boxes: Boxes,
    size: int,
    precision: lax.Precision,
) -> Float[Array, "R P P C"]:
    """Pool chunks of boxes at the same time: the form for accelerators.

    A round adds one tile to every box. The first round holds all boxes, and most need no other. For
    the next rounds the boxes with the most tiles come first, so a round ends where they run out.
    """
    total = len(boxes.level)
    channels = levels[0].shape[-1]
    chunk = min(BOXES_A_CHUNK, max(total, 1))
    across = -(-boxes.columns.span // TILE)
    tiles = across * -(-boxes.rows.span // TILE)
    order = jnp.argsort(-tiles, stable=True)
    padded_order = jnp.pad(order, (0, -total % chunk))
    boxes, across, tiles = jax.tree.map(lambda x: x[padded_order], (boxes, across, tiles))
    tiles = jnp.where(jnp.arange(len(tiles)) < total, tiles, 0)
    cells, first_cell, width = _flat_cells(levels, boxes)

    def tile_of_each(start: Int[Array, ""], round_: Int[Array, ""]) -> Float[Array, "M P P C"]:
        some, across_, tiles_, first_, width_ = jax.tree.map(
            lambda x: lax.dynamic_slice_in_dim(x, start, chunk),
            (boxes, across, tiles, first_cell, width),
        )
        down, right = jnp.divmod(round_, jnp.maximum(across_, 1))
        rows = (some.rows.first + down * TILE)[:, None] + jnp.arange(TILE, dtype=jnp.int32)
        columns = (some.columns.first + right * TILE)[:, None] + jnp.arange(TILE, dtype=jnp.int32)
        inside_rows = jnp.minimum(rows, some.rows.cells[:, None] - 1)
        starts = first_[:, None] + inside_rows * width_[:, None] + columns[:, :1]
        windows = jax.vmap(jax.vmap(lambda at: lax.dynamic_slice_in_dim(cells, at, TILE)))(starts)
        exists = (round_ < tiles_)[:, None, None]
        row_weights = jnp.where(exists, axis_weights(some.rows, rows, size), 0.0)
        column_weights = axis_weights(some.columns, columns, size)
        return _products(windows, row_weights, column_weights, precision)

    def add_round(round_: Int[Array, ""], chunks: Int[Array, ""] | int, pooled: Array) -> Array:
        def add_chunk(index: Int[Array, ""], pooled: Array) -> Array:
            start = index * chunk
            before = lax.dynamic_slice_in_dim(pooled, start, chunk)
            after = before + tile_of_each(start, round_)
            return lax.dynamic_update_slice_in_dim(pooled, after, start, axis=0)

        return lax.fori_loop(0, chunks, add_chunk, pooled)

    def next_round(state: tuple[Array, Array]) -> tuple[Array, Array]:
        round_, pooled = state
        chunks = -(-jnp.sum(tiles > round_) // chunk)
        return round_ + 1, add_round(round_, chunks, pooled)

    pooled = varying_zeros(boxes, len(tiles), size, size, channels)
    pooled = add_round(jnp.int32(0), len(tiles) // chunk, pooled)
    _, pooled = lax.while_loop(
        lambda state: jnp.any(tiles > state[0]), next_round, (jnp.int32(1), pooled)
    )
    unsorted = jnp.zeros(total, jnp.int32).at[order].set(jnp.arange(total, dtype=jnp.int32))
    return pooled[unsorted].astype(levels[0].dtype)


def _flat_cells(
    levels: tuple[Float[Array, "B Hl Wl C"], ...], boxes: Boxes
) -> tuple[Float[Array, "cells C"], Int[Array, " R"], Int[Array, " R"]]:
    """Return the cells of all maps in one array, and each box's first cell and row length there.

    A tile may reach beyond the last cell, so the array ends with a tile's width of zeros.
    """
    channels = levels[0].shape[-1]
    flat = [level.reshape(-1, channels) for level in levels]
    cells = jnp.concatenate([*flat, jnp.zeros((TILE, channels), flat[0].dtype)])
    ends = jnp.cumsum(jnp.array([0] + [len(x) for x in flat[:-1]], jnp.int32))
    size = jnp.array([x.shape[1] * x.shape[2] for x in levels], jnp.int32)
    first = ends[boxes.level] + boxes.picture * size[boxes.level]
    return cells, first, boxes.columns.cells


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
    levels: tuple[Float[Array, "B Hl Wl C"], ...],
    boxes: Boxes,
    grad: Float[Array, "R P P C"],
    size: int,
    precision: lax.Precision,
) -> tuple[Float[Array, "B Hl Wl C"], ...]:
    """Return the gradients of the levels as products over all boxes: the form for accelerators.

    ``dF = sum over boxes of Wy^T G Wx`` is one large product for each picture and level, with zero
    weights for boxes of other levels. It costs more operations than sums over the covered tiles,
    but needs no atomics, whose order would change from run to run.
    """
    batch = levels[0].shape[0]
    count = len(boxes.level) // batch
    chunk = min(BOXES_A_GRADIENT_CHUNK, max(count, 1))
    behind = -count % chunk

    def in_chunks(x: Array) -> Array:
        """[B * N, ...] to [B, chunks, chunk, ...], padded with zeros."""
        x = x.reshape(batch, count, *x.shape[1:])
        x = jnp.pad(x, [(0, 0), (0, behind)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(batch, -1, chunk, *x.shape[2:])

    exists = jnp.ones(batch * count, bool)
    chunks = jax.tree.map(in_chunks, (boxes, grad, exists))

    def of_level(index: int, level: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        _, height, width, channels = level.shape
        rows = jnp.broadcast_to(jnp.arange(height, dtype=jnp.int32), (chunk, height))
        columns = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (chunk, width))

        def add_chunk(total: Array, part: tuple[Boxes, Array, Array]) -> tuple[Array, None]:
            some, grad, exists = part
            here = (exists & (some.level == index))[:, None, None]
            row_weights = jnp.where(here, axis_weights(some.rows, rows, size), 0.0)
            column_weights = axis_weights(some.columns, columns, size)
            column_weights = jnp.where(here, column_weights, 0.0).astype(grad.dtype)
            kwargs = {"precision": precision, "preferred_element_type": jnp.float32}
            by_row = jnp.einsum("npqc,nqw->npwc", grad, column_weights, **kwargs)
            by_row = by_row.astype(grad.dtype)
            product = jnp.einsum("nph,npwc->hwc", row_weights.astype(grad.dtype), by_row, **kwargs)
            return total + product, None

        def of_picture(parts: tuple[Boxes, Array, Array]) -> Float[Array, "H W C"]:
            start = varying_zeros(boxes, height, width, channels)
            return lax.scan(add_chunk, start, parts)[0]

        return lax.map(of_picture, chunks).astype(level.dtype)

    return tuple(of_level(index, level) for index, level in enumerate(levels))
