"""Convolution and its gradients against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.models import convolution
from rpn_jax.models.convolution import convolve, kernel_gradient_by_matmul
from tests.oracles.convolution import conv_gradient_loop, conv_loop

SIZES_AND_STRIDES = [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2), (5, 3), (3, 4)]


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


@pytest.mark.parametrize(("size", "stride"), SIZES_AND_STRIDES)
@pytest.mark.parametrize("min_pixels", [1, 10_000])
def test_gradients_of_convolve_are_those_of_its_definition(monkeypatch, size, stride, min_pixels):
    # Both ways to the kernel's gradient: matrix products, and below so many pixels XLA's own.
    monkeypatch.setattr(convolution, "MIN_PIXELS", min_pixels)
    rng = np.random.default_rng(size)
    x = rng.standard_normal((9, 11, 3)).astype(np.float32)
    kernel = rng.standard_normal((size, size, 3, 4)).astype(np.float32)

    def apply(x, kernel, bias):
        return convolve(x[None], kernel, bias, "float32", stride)[0]

    y, transpose = jax.vjp(apply, x, kernel, np.zeros(4, np.float32))
    y_grad = rng.standard_normal(y.shape).astype(np.float32)
    x_grad, kernel_grad, bias_grad = transpose(y_grad)
    expected_x, expected_kernel = conv_gradient_loop(x, kernel, y_grad, stride)
    np.testing.assert_allclose(x_grad, expected_x, atol=1e-4)
    np.testing.assert_allclose(kernel_grad, expected_kernel, atol=1e-4)
    np.testing.assert_allclose(bias_grad, y_grad.sum((0, 1)), atol=1e-4)


@pytest.mark.parametrize(("size", "stride"), SIZES_AND_STRIDES)
@pytest.mark.parametrize("tile_bytes", [1, 1500, 2**21])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 12), (13, 7)])
def test_kernel_gradient_by_matmul_in_any_tiles(
    monkeypatch, size, stride, tile_bytes, height, width
):
    monkeypatch.setattr(convolution, "TILE_BYTES", tile_bytes)
    rng = np.random.default_rng(height)
    x = rng.standard_normal((2, height, width, 3)).astype(np.float32)
    out = (-(-height // stride), -(-width // stride))
    y_grad = rng.standard_normal((2, *out, 4)).astype(np.float32)
    kernel = np.zeros((size, size, 3, 4), np.float32)
    expected = sum(
        conv_gradient_loop(*picture, stride)[1]
        for picture in zip(x, (kernel, kernel), y_grad, strict=True)
    )
    gradient = jax.jit(kernel_gradient_by_matmul, static_argnums=(2, 3))(x, y_grad, size, stride)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("block_channels", [1, 8, 64])
@pytest.mark.parametrize("min_pixels", [1, 10_000])
def test_grouped_convolutions_and_their_gradients(monkeypatch, stride, block_channels, min_pixels):
    # Dense blocks of one group, two and all; and below so many pixels XLA's own form.
    monkeypatch.setattr(convolution, "BLOCK_CHANNELS", block_channels)
    monkeypatch.setattr(convolution, "MIN_PIXELS", min_pixels)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 8, 16)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 4, 12)).astype(np.float32)

    def apply(x, kernel):
        return convolve(x[None], kernel, None, "float32", stride, groups=4)[0]

    y, transpose = jax.vjp(jax.jit(apply), x, kernel)
    np.testing.assert_allclose(y, conv_loop(x, kernel, stride, 4), atol=1e-4)
    y_grad = rng.standard_normal(y.shape).astype(np.float32)
    x_grads, kernel_grads = zip(
        *(
            conv_gradient_loop(
                x[..., 4 * group : 4 * group + 4],
                kernel[..., 3 * group : 3 * group + 3],
                y_grad[..., 3 * group : 3 * group + 3],
                stride,
            )
            for group in range(4)
        ),
        strict=True,
    )
    x_grad, kernel_grad = transpose(y_grad)
    np.testing.assert_allclose(x_grad, np.concatenate(x_grads, -1), atol=1e-4)
    np.testing.assert_allclose(kernel_grad, np.concatenate(kernel_grads, -1), atol=1e-4)


def test_gradients_under_vmap():
    rng = np.random.default_rng(0)
    x = jnp.array(rng.standard_normal((3, 1, 17, 16, 4)), jnp.float32)
    kernels = jnp.array(rng.standard_normal((3, 3, 3, 4, 5)), jnp.float32)

    def kernel_grad(x, kernel):
        return jax.grad(lambda k: jnp.sum(jnp.sin(convolve(x, k, None, "float32"))))(kernel)

    one_by_one = jnp.stack([kernel_grad(*pair) for pair in zip(x, kernels, strict=True)])
    np.testing.assert_allclose(jax.vmap(kernel_grad)(x, kernels), one_by_one, atol=1e-4)


def test_gradient_of_the_bias_is_summed_in_float32():
    x = jnp.ones((1, 128, 160, 1))
    kernel = jnp.ones((1, 1, 1, 1))

    def total(bias):
        return jnp.sum(convolve(x, kernel, bias, "bfloat16").astype(jnp.float32))

    # Sixteen bits stop counting ones at 256.
    assert jax.grad(total)(jnp.zeros(1)) == 128 * 160
