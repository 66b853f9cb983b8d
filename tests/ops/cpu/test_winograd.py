"""Winograd's convolution against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rpn_jax.ops.cpu import winograd
from tests.oracles.convolution import conv_gradient_loop, conv_loop


@pytest.mark.parametrize("tile_bytes", [1, 3000, 2**24])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (3, 8), (12, 7), (9, 10)])
def test_convolution_and_gradient_in_any_tiles(monkeypatch, tile_bytes, height, width):
    monkeypatch.setattr(winograd, "TILE_BYTES", tile_bytes)
    rng = np.random.default_rng(height)
    x = rng.standard_normal((4, height, width, 3)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 3, 5)).astype(np.float32)
    y = jax.jit(lambda *args: winograd.convolve_3x3(*args))(x, kernel)
    expected = np.stack([conv_loop(picture, kernel, 1, 1) for picture in x])
    np.testing.assert_allclose(y, expected, atol=2e-5)

    y_grad = rng.standard_normal(y.shape).astype(np.float32)
    x_grad = jax.jit(lambda *args: winograd.input_gradient_3x3(*args))(y_grad, kernel)
    pairs = zip(x, y_grad, strict=True)
    expected = np.stack([conv_gradient_loop(a, kernel, b, 1)[0] for a, b in pairs])
    np.testing.assert_allclose(x_grad, expected, atol=2e-5)


def test_convolution_under_vmap():
    rng = np.random.default_rng(0)
    x = jnp.array(rng.standard_normal((3, 2, 7, 6, 4)), jnp.float32)
    kernels = jnp.array(rng.standard_normal((3, 3, 3, 4, 5)), jnp.float32)
    one_by_one = jnp.stack([winograd.convolve_3x3(*pair) for pair in zip(x, kernels, strict=True)])
    np.testing.assert_allclose(jax.vmap(winograd.convolve_3x3)(x, kernels), one_by_one, atol=1e-5)


@pytest.mark.parametrize("channels", [128, 512])
@pytest.mark.parametrize("after_relu", [False, True])
def test_rounding_is_of_the_size_of_the_plain_convolution(channels, after_relu):
    rng = np.random.default_rng(channels)
    x = rng.standard_normal((1, 16, 18, channels)).astype(np.float32)
    if after_relu:
        x = np.maximum(x, 0)
    kernel = rng.standard_normal((3, 3, channels, 32)).astype(np.float32)
    exact = conv_loop(x[0].astype(np.float64), kernel.astype(np.float64), 1, 1)
    plain = lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    y = winograd.convolve_3x3(jnp.array(x), jnp.array(kernel))
    # 0.7 to 2.1 times over several sizes: it depends on how the products are cut up.
    assert np.linalg.norm(y[0] - exact) < 3 * np.linalg.norm(plain[0] - exact)
