"""Products in each precision: the operands that are rounded, and the dtype of the result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.ops.precision import matmul
from tests.oracles.tf32 import ten_bits


def random_inputs(seed):
    rng = np.random.default_rng(seed)
    shapes = ((2, 5, 8), (8, 6), (2, 5, 6))
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def product_and_gradients(x, weights, y_grad, precision):
    y, transpose = jax.vjp(lambda x, weights: matmul(x, weights, precision), x, weights)
    return y, *transpose(jnp.asarray(y_grad, y.dtype))


def numpy_results(x, weights, y_grad):
    x, weights, y_grad = (array.astype(np.float64) for array in (x, weights, y_grad))
    return x @ weights, y_grad @ weights.T, np.einsum("bni,bno->io", x, y_grad)


@pytest.mark.parametrize("seed", range(3))
def test_float32_is_exact(seed):
    inputs = random_inputs(seed)
    found = product_and_gradients(*inputs, "float32")
    for ours, expected in zip(found, numpy_results(*inputs), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.cpu_forms
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a GPU rounds within its products")
@pytest.mark.parametrize("seed", range(3))
def test_tf32_rounds_every_operand_and_no_result(seed):
    inputs = random_inputs(seed)
    found = product_and_gradients(*inputs, "tf32")
    expected = numpy_results(*map(ten_bits, inputs))
    for ours, rounded, exact in zip(found, expected, numpy_results(*inputs), strict=True):
        np.testing.assert_allclose(ours, rounded, rtol=1e-5, atol=1e-5)
        assert np.abs(ours - exact).max() > 1e-4


def test_bfloat16_rounds_operands_and_returns_bfloat16_or_what_is_asked_for():
    x, weights, _ = random_inputs(0)
    rounded = [np.asarray(jnp.asarray(array, jnp.bfloat16), np.float64) for array in (x, weights)]
    assert matmul(x, weights, "bfloat16").dtype == jnp.bfloat16
    found = matmul(x, weights, "bfloat16", jnp.float32)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, rounded[0] @ rounded[1], rtol=1e-5, atol=1e-5)
