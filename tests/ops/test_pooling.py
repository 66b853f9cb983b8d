"""Max-pooling against PyTorch's definition, as NumPy loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.ops.pooling import max_pool_3x3_stride_2


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_max_pool_ignores_what_lies_outside(size):
    x = -1 - np.random.default_rng(0).random((1, *size, 2)).astype(np.float32)
    y = max_pool_3x3_stride_2(jnp.array(x))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    for row in range(y.shape[1]):
        for column in range(y.shape[2]):
            window = padded[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            np.testing.assert_array_equal(y[0, row, column], window.max((0, 1)))
    assert y.shape[1:3] == (-(-size[0] // 2), -(-size[1] // 2))


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_gradient_of_max_pool_goes_to_the_first_of_equals(seed, size):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 3, (2, *size, 2)).astype(np.float32)
    y, transpose = jax.vjp(max_pool_3x3_stride_2, jnp.array(x))
    y_grad = rng.random(y.shape).astype(np.float32)
    expected = np.zeros((2, size[0] + 2, size[1] + 2, 2), np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    for picture, row, column, channel in np.ndindex(y.shape):
        window = padded[picture, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3, channel]
        i, j = np.unravel_index(window.argmax(), window.shape)
        place = (picture, 2 * row + i, 2 * column + j, channel)
        expected[place] += y_grad[picture, row, column, channel]
    np.testing.assert_allclose(transpose(y_grad)[0], expected[:, 1:-1, 1:-1], rtol=1e-6)


@pytest.mark.parametrize("place", [(0, 0), (1, 2), (3, 3)])
def test_max_pool_propagates_nan(place):
    x = jnp.zeros((1, 4, 4, 1)).at[0, *place, 0].set(jnp.nan)
    expected = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    assert jnp.isnan(expected).any()
    np.testing.assert_array_equal(max_pool_3x3_stride_2(x), expected)
