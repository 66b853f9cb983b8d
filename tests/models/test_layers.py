"""Norms and pooling against PyTorch's definitions, as NumPy loops."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.models.fpn import upsample_nearest
from rpn_jax.models.layers import (
    GroupNorm,
    NormOptions,
    conv_norm,
    max_pool_3x3_stride_2,
    relu,
    relu_of_sum,
)
from tests.oracles.convolution import conv_loop


class OneConvNorm(nn.Module):
    norm: NormOptions

    @nn.compact
    def __call__(self, x):
        return conv_norm(x, 64, 3, self.norm, "float32", "conv1", "norm1")


def norm_case(norm):
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 8)) * 3 + 1
    module = OneConvNorm(norm)
    variables = module.init(jax.random.key(1), x)
    keys = iter(jax.random.split(jax.random.key(2), 10))
    variables = jax.tree.map(
        lambda leaf: jax.random.uniform(next(keys), leaf.shape, minval=0.5, maxval=1.5), variables
    )
    kernel = variables["params"]["conv1"]["kernel"]
    plain = np.stack([conv_loop(np.asarray(p), np.asarray(kernel), 1, 1) for p in x])
    norm_params = {k: np.asarray(v) for k, v in variables["params"]["norm1"].items()}
    return module, variables, x, plain, norm_params


@pytest.mark.parametrize("kind", ["frozen", "batch"])
def test_stored_statistics_normalise_as_batch_norm_does(kind):
    module, variables, x, plain, params = norm_case(NormOptions(kind, True, False, None))
    stats = {k: np.asarray(v) for k, v in variables["batch_stats"]["norm1"].items()}
    expected = (plain - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    expected = expected * params["scale"] + params["bias"]
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-4, atol=1e-4)


def test_batch_norm_in_training_takes_the_statistics_of_all_devices():
    norm = NormOptions("batch", True, True, "devices")
    _, variables, x, plain, params = norm_case(NormOptions("batch", True, False, None))
    apply = jax.vmap(
        lambda part: OneConvNorm(norm).apply(variables, part, mutable=["batch_stats"]),
        axis_name="devices",
    )
    y, updates = apply(x[:, None])
    axes = (0, 1, 2)
    expected = (plain - plain.mean(axes)) / np.sqrt(plain.var(axes) + 1e-5)
    expected = expected * params["scale"] + params["bias"]
    np.testing.assert_allclose(y[:, 0], expected, rtol=1e-3, atol=1e-3)
    old = variables["batch_stats"]["norm1"]["mean"]
    new = 0.9 * np.asarray(old) + 0.1 * plain.mean(axes)
    np.testing.assert_allclose(updates["batch_stats"]["norm1"]["mean"][1], new, rtol=1e-3)


def test_group_norm_takes_32_groups_of_each_picture():
    module, variables, x, plain, params = norm_case(NormOptions("group", True, False, None))
    groups = plain.reshape(2, -1, 32, 2)
    mean = groups.mean((1, 3), keepdims=True)
    expected = (groups - mean) / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    expected = expected.reshape(plain.shape) * params["scale"] + params["bias"]
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("offset", [0, 5])
def test_group_norm_and_its_gradients_are_those_of_flax(offset):
    x = offset + jax.random.normal(jax.random.key(0), (2, 7, 5, 64))
    weights = jax.random.normal(jax.random.key(1), x.shape)
    scale, bias = jax.random.normal(jax.random.key(2), (2, 64))

    def value_and_grads(module):
        def loss(params, x):
            return jnp.sum(weights * module.apply({"params": params}, x))

        return jax.value_and_grad(loss, argnums=(0, 1))({"scale": scale, "bias": bias}, x)

    exact = value_and_grads(nn.GroupNorm(32, epsilon=1e-5, use_fast_variance=False))
    chex.assert_trees_all_close(value_and_grads(GroupNorm(64)), exact, rtol=1e-3, atol=1e-3)


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
def test_max_pool_hands_nan_on(place):
    x = jnp.zeros((1, 4, 4, 1)).at[0, *place, 0].set(jnp.nan)
    expected = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    assert jnp.isnan(expected).any()
    np.testing.assert_array_equal(max_pool_3x3_stride_2(x), expected)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (7, 11), (8, 11), (1, 2)])
def test_upsampling_takes_the_pixels_that_pytorch_takes(height, width):
    rows, columns = -(-height // 2), -(-width // 2)
    x = np.random.default_rng(0).random((1, rows, columns, 3)).astype(np.float32)
    y = upsample_nearest(jnp.array(x), height, width)
    from_rows = np.arange(height) * rows // height
    from_columns = np.arange(width) * columns // width
    np.testing.assert_array_equal(y[0], x[0][from_rows][:, from_columns])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_relu_and_its_gradient_are_those_of_jax(dtype):
    x = jnp.array([-jnp.inf, -2, -0.0, 0, 1e-30, 3, jnp.inf], dtype)
    tangent = jnp.arange(1, 8).astype(dtype)
    got, (gradient,) = jax.jit(lambda x: (relu(x), jax.vjp(relu, x)[1](tangent)))(x)
    assert got.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(got, nn.relu(x))
    np.testing.assert_array_equal(gradient, jax.vjp(nn.relu, x)[1](tangent)[0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_relu_of_a_sum_has_the_bits_and_the_gradients_of_its_definition(dtype):
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((3, 1000))
    # Sums of zero, from either side, and sums that lose all of one number.
    numbers[0, :3] = -numbers[1, :3]
    numbers[0, 3:5], numbers[1, 3:5] = (0.0, -0.0), 0.0
    numbers[0, 5:7] *= 1e-12
    numbers[1, 7:9] *= 1e-12
    x, shortcut, tangent = jnp.array(numbers, dtype)

    def result_and_gradients(function):
        y, transpose = jax.vjp(function, x, shortcut)
        return y, *transpose(tangent)

    got = jax.jit(lambda: result_and_gradients(relu_of_sum))()
    expected = jax.jit(lambda: result_and_gradients(lambda x, y: nn.relu(x + y)))()
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == dtype
        np.testing.assert_array_equal(ours, theirs)


def test_residual_blocks_do_not_keep_every_branch():
    # The plain sum takes 8.
    def blocks(x, kernels):
        for kernel in kernels:
            x = relu_of_sum(jnp.dot(x, kernel, precision="highest"), x)
        return x

    x, kernels = jnp.zeros((512, 64)), jnp.zeros((8, 64, 64))
    memory = jax.jit(blocks).lower(x, kernels).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 3 * x.nbytes
