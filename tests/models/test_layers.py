"""Norms and upsampling against PyTorch's definitions, as NumPy loops."""

from dataclasses import replace

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.models.fpn import upsample_nearest
from rpn_jax.models.layers import ConvNorm, GroupNorm, LayerOptions, conv_norm
from tests.oracles.convolution import conv_loop


class OneConvNorm(nn.Module):
    options: LayerOptions

    @nn.compact
    def __call__(self, x):
        return conv_norm(x, ConvNorm("conv1", "norm1", 64, 3), self.options)


def options(norm):
    return LayerOptions(
        norm, train_norm=True, update_statistics=False, axis_name=None, precision="float32"
    )


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
    module, variables, x, plain, params = norm_case(options(kind))
    stats = {k: np.asarray(v) for k, v in variables["batch_stats"]["norm1"].items()}
    expected = (plain - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    expected = expected * params["scale"] + params["bias"]
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-4, atol=1e-4)


def test_batch_norm_in_training_takes_the_statistics_of_all_devices():
    norm = replace(options("batch"), update_statistics=True, axis_name="devices")
    _, variables, x, plain, params = norm_case(options("batch"))
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
    module, variables, x, plain, params = norm_case(options("group"))
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


@pytest.mark.parametrize(("height", "width"), [(8, 12), (7, 11), (8, 11), (1, 2)])
def test_upsampling_takes_the_pixels_that_pytorch_takes(height, width):
    rows, columns = -(-height // 2), -(-width // 2)
    x = np.random.default_rng(0).random((1, rows, columns, 3)).astype(np.float32)
    y = upsample_nearest(jnp.array(x), height, width)
    from_rows = np.arange(height) * rows // height
    from_columns = np.arange(width) * columns // width
    np.testing.assert_array_equal(y[0], x[0][from_rows][:, from_columns])
