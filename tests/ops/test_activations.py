"""ReLUs with their own gradients, against those of JAX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.ops.activations import relu, relu_of_sum


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


@pytest.mark.cpu_forms
def test_residual_blocks_do_not_keep_every_branch():
    # With the ReLU last, XLA stores the output of all 8 branches.
    def blocks(x, kernels):
        for kernel in kernels:
            x = relu_of_sum(jnp.dot(x, kernel, precision="highest"), x)
        return x

    x, kernels = jnp.zeros((512, 64)), jnp.zeros((8, 64, 64))
    memory = jax.jit(blocks).lower(x, kernels).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 3 * x.nbytes
