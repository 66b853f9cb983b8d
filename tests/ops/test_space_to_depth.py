"""The stem's convolution over blocks of 2x2 pixels, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.ops.space_to_depth import applies, convolve_pixel_blocks
from tests.oracles.convolution import conv_gradient_loop, conv_loop


def made(height: int, width: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(height)
    x = rng.standard_normal((height, width, channels)).astype(np.float32)
    return x, rng.standard_normal((7, 7, channels, 5)).astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (6, 10), (16, 8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_result_is_that_of_the_7x7_convolution(height, width, channels):
    x, kernel = made(height, width, channels)
    found = jax.jit(convolve_pixel_blocks)(x[None], kernel)[0]
    np.testing.assert_allclose(found, conv_loop(x, kernel, 2, 1), atol=1e-4)


def test_the_gradients_are_those_of_the_7x7_convolution():
    x, kernel = made(6, 10, 3)
    y, transpose = jax.vjp(lambda x, kernel: convolve_pixel_blocks(x[None], kernel)[0], x, kernel)
    y_grad = np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)
    for found, expected in zip(
        transpose(y_grad), conv_gradient_loop(x, kernel, y_grad, 2), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "dtype", "expected"),
    [
        ((2, 32, 64, 3), (7, 7, 3, 64), 2, jnp.bfloat16, True),
        ((2, 32, 64, 3), (7, 7, 3, 64), 2, jnp.float32, False),
        ((2, 32, 64, 3), (7, 7, 3, 64), 1, jnp.bfloat16, False),
        ((2, 32, 64, 3), (3, 3, 3, 64), 2, jnp.bfloat16, False),
        ((2, 32, 64, 64), (7, 7, 64, 64), 2, jnp.bfloat16, False),
        ((2, 31, 64, 3), (7, 7, 3, 64), 2, jnp.bfloat16, False),
    ],
)
def test_only_the_stem_in_bfloat16_takes_this_form(shape, kernel, stride, dtype, expected):
    assert applies(jnp.zeros(shape, dtype), jnp.zeros(kernel, dtype), stride) is expected
