"""What a 3x3 convolution reads at some cells, and the way back of its gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.ops.patches import patches_3x3

PYRAMIDS = {"pyramid": [(7, 5), (4, 3), (2, 2), (1, 1)], "one level": [(6, 9)]}
BATCH, CHANNELS = 3, 4


def random_levels(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(rng.normal(size=(BATCH, *shape, CHANNELS)), jnp.float32) for shape in shapes
    )


def random_cells(shapes, count, seed=0):
    total = sum(rows * columns for rows, columns in shapes)
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(total)[:count] for _ in range(BATCH)]).astype(np.int32)


def looped_patches(levels, cells):
    """Cell by cell, of every cell's window."""
    places = [
        (level, row, column)
        for level, x in enumerate(levels)
        for row in range(x.shape[1])
        for column in range(x.shape[2])
    ]
    patches = np.zeros((*cells.shape, 3, 3, CHANNELS), np.float32)
    for picture, of_picture in enumerate(cells):
        for place, cell in enumerate(of_picture):
            level, row, column = places[cell]
            padded = np.pad(np.asarray(levels[level][picture]), ((1, 1), (1, 1), (0, 0)))
            patches[picture, place] = padded[row : row + 3, column : column + 3]
    return patches.reshape(*cells.shape, 9 * CHANNELS)


@pytest.mark.parametrize("shapes", PYRAMIDS.values(), ids=PYRAMIDS)
@pytest.mark.parametrize("seed", range(3))
def test_against_the_loop(shapes, seed):
    levels, total = random_levels(shapes, seed), sum(rows * columns for rows, columns in shapes)
    for count in (0, 1, total):
        cells = random_cells(shapes, count, seed)
        patches = jax.jit(patches_3x3)(levels, cells)
        np.testing.assert_array_equal(patches, looped_patches(levels, cells))


@pytest.mark.parametrize("shapes", PYRAMIDS.values(), ids=PYRAMIDS)
def test_the_gradient_adds_up_where_windows_overlap(shapes):
    levels = random_levels(shapes)
    cells = random_cells(shapes, sum(rows * columns for rows, columns in shapes) - 1)
    patches, gradient_of = jax.vjp(jax.jit(lambda levels: patches_3x3(levels, cells)), levels)
    grad = np.random.default_rng(1).normal(size=patches.shape).astype(np.float32)
    (levels_grad,) = gradient_of(grad)
    # Of a linear map: <patches(x), grad> = <x, gradient>, for every x with a single 1.
    for level, of_level in enumerate(levels_grad):
        for index in np.ndindex(of_level.shape):
            one = [np.zeros(x.shape, np.float32) for x in levels]
            one[level][index] = 1
            expected = np.sum(looped_patches(one, cells) * grad)
            np.testing.assert_allclose(of_level[index], expected, atol=1e-6)


def test_vmap_and_bfloat16():
    shapes = PYRAMIDS["pyramid"]
    levels = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_levels(shapes))
    cells = random_cells(shapes, 9)

    def total(levels, cells):
        patches = patches_3x3(levels, cells)
        assert patches.dtype == jnp.bfloat16
        return jnp.sum(patches.astype(jnp.float32) ** 2)

    one_by_one = jax.jit(jax.grad(total))(levels, cells)
    of_one = jax.tree.map(lambda x: x[:, None], (levels, cells))
    mapped = jax.jit(jax.vmap(jax.grad(total)))(*of_one)
    for a, b in zip(jax.tree.leaves(one_by_one), jax.tree.leaves(mapped), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_array_equal(a, b[:, 0])


def test_a_product_with_the_kernel_is_the_convolution():
    (x,) = random_levels([(6, 9)])
    kernel = np.random.default_rng(2).normal(size=(3, 3, CHANNELS, 5)).astype(np.float32)
    cells = np.tile(np.arange(54, dtype=np.int32), (BATCH, 1))
    convolve = partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    products = jax.jit(patches_3x3)((x,), cells) @ kernel.reshape(-1, 5)
    expected = convolve(x, kernel).reshape(BATCH, 54, 5)
    np.testing.assert_allclose(products, expected, atol=1e-5)
