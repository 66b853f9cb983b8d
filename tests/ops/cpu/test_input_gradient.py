"""The gradient of a convolution's input against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.ops.convolution import convolve
from rpn_jax.ops.cpu import convolution
from rpn_jax.ops.cpu.input_gradient import input_gradient_by_matmul
from tests.oracles.convolution import conv_gradient_loop

SIZES_AND_STRIDES = [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2), (5, 3), (3, 4)]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("size", "stride"), SIZES_AND_STRIDES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 12), (13, 7)])
def test_input_gradient_by_matmul(seed, size, stride, height, width):
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((size, size, 3, 4)).astype(np.float32)
    out = (-(-height // stride), -(-width // stride))
    y_grad = rng.standard_normal((2, *out, 4)).astype(np.float32)
    x = np.zeros((height, width, 3), np.float32)
    expected = np.stack([conv_gradient_loop(x, kernel, of_one, stride)[0] for of_one in y_grad])
    gradient = jax.jit(input_gradient_by_matmul, static_argnums=(2, 3, 4))
    np.testing.assert_allclose(gradient(y_grad, kernel, height, width, stride), expected, atol=1e-4)


@pytest.mark.cpu_forms
@pytest.mark.parametrize(
    ("size", "stride", "features", "as_product"),
    [
        (3, 1, 28, False),  # 9 * 28 weights for an input channel and 16 * 16 pixels of it
        (3, 1, 29, True),
        (1, 1, 1, True),
        (1, 2, 1, True),
    ],
)
def test_where_a_product_pays(monkeypatch, size, stride, features, as_product):
    monkeypatch.setattr(convolution, "MIN_PIXELS", 1)
    x = jax.ShapeDtypeStruct((1, 16, 16, 2), jnp.float32)
    kernel = jnp.ones((size, size, 2, features))

    def x_grad(x):
        return jax.grad(lambda x: jnp.sum(convolve(x, kernel, None, "float32", stride)))(x)

    program = jax.jit(x_grad).lower(x).as_text()
    assert ("stablehlo.convolution" not in program) == as_product
