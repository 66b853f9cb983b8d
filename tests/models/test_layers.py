"""Convolutions, norms and pooling against PyTorch's definitions, as NumPy loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.models.fpn import upsample_nearest
from rpn_jax.models.layers import NormOptions, conv_norm, convolve, max_pool_3x3_stride_2


def conv_loop(x, kernel, stride, groups):
    """Plain convolution of one NHWC picture with k // 2 pixels of zeros around."""
    size = kernel.shape[0]
    pad = size // 2
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    rows = (x.shape[0] + 2 * pad - size) // stride + 1
    columns = (x.shape[1] + 2 * pad - size) // stride + 1
    inputs, outputs = kernel.shape[2], kernel.shape[3] // groups
    y = np.zeros((rows, columns, kernel.shape[3]))
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride, column * stride
            patch = padded[top : top + size, left : left + size]
            for group in range(groups):
                part = patch[..., group * inputs : (group + 1) * inputs]
                weights = kernel[..., group * outputs : (group + 1) * outputs]
                y[row, column, group * outputs : (group + 1) * outputs] = np.tensordot(
                    part, weights, 3
                )
    return y


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("size", "stride", "groups"),
    [
        (1, 1, 1),
        (1, 2, 1),
        (3, 1, 1),
        (3, 2, 1),
        (7, 2, 1),
        (3, 1, 4),
        (3, 2, 4),
    ],
)
def test_convolve_pads_and_groups_as_pytorch(seed, size, stride, groups):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(7, 12, 2)
    x = rng.standard_normal((1, height, width, 8)).astype(np.float32)
    kernel = rng.standard_normal((size, size, 8 // groups, 12)).astype(np.float32)
    bias = rng.standard_normal(12).astype(np.float32)
    y = convolve(jnp.array(x), kernel, bias, "float32", stride, groups)
    np.testing.assert_allclose(y[0], conv_loop(x[0], kernel, stride, groups) + bias, atol=1e-4)


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


@pytest.mark.parametrize(("height", "width"), [(8, 12), (7, 11), (8, 11), (1, 2)])
def test_upsampling_takes_the_pixels_that_pytorch_takes(height, width):
    rows, columns = -(-height // 2), -(-width // 2)
    x = np.random.default_rng(0).random((1, rows, columns, 3)).astype(np.float32)
    y = upsample_nearest(jnp.array(x), height, width)
    from_rows = np.arange(height) * rows // height
    from_columns = np.arange(width) * columns // width
    np.testing.assert_array_equal(y[0], x[0][from_rows][:, from_columns])
