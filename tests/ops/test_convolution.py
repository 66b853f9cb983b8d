"""Convolution and its gradients against plain loops."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.ops.convolution import convolve
from rpn_jax.ops.cpu import convolution
from tests.oracles.convolution import conv_gradient_loop, conv_loop
from tests.oracles.tf32 import ten_bits

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
    y = convolve(jnp.array(x), kernel, bias, "float32", stride)
    np.testing.assert_allclose(y[0], conv_loop(x[0], kernel, stride, groups) + bias, atol=1e-4)


@pytest.mark.parametrize(("size", "stride"), SIZES_AND_STRIDES)
@pytest.mark.parametrize("min_pixels", [1, 10_000])
def test_gradients_of_convolve_are_those_of_its_definition(monkeypatch, size, stride, min_pixels):
    # Both ways to the gradients: matrix products, and below so many pixels XLA's own.
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


@pytest.mark.cpu_forms
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a GPU rounds within its products")
@pytest.mark.parametrize(("size", "groups"), [(1, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("min_pixels", [1, 10_000])
def test_tf32_multiplies_ten_bits_and_sums_more(monkeypatch, size, groups, min_pixels):
    monkeypatch.setattr(convolution, "MIN_PIXELS", min_pixels)
    rng = np.random.default_rng(size)
    x, kernel, y_grad = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((1, 9, 11, 4), (size, size, 4 // groups, 6), (1, 9, 11, 6))
    )

    def results(x, kernel, y_grad, precision):
        def apply(x, kernel):
            return convolve(x, kernel, None, precision)

        y, transpose = jax.vjp(apply, x, kernel)
        return y, *transpose(y_grad)

    in_tf32 = results(x, kernel, y_grad, "tf32")
    expected = results(*map(ten_bits, (x, kernel, y_grad)), "float32")
    exact = results(x, kernel, y_grad, "float32")
    for ours, rounded, unrounded in zip(in_tf32, expected, exact, strict=True):
        np.testing.assert_allclose(ours, rounded, rtol=1e-5, atol=1e-5)
        assert np.abs(ours - unrounded).max() > 1e-4


@pytest.mark.cpu_forms
@pytest.mark.parametrize(
    ("channels", "features", "stride", "size", "in_tiles"),
    [
        (128, 130, 1, 3, True),
        (127, 128, 1, 3, False),
        (128, 127, 1, 3, False),
        (128, 128, 2, 3, False),
        (128, 128, 1, 1, False),
    ],
)
def test_winograd_where_it_pays(monkeypatch, channels, features, stride, size, in_tiles):
    monkeypatch.setattr(convolution, "MIN_WINOGRAD_FLOPS", 1)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 17, 18, channels)).astype(np.float32)
    kernel = rng.standard_normal((size, size, channels, features)).astype(np.float32)

    def apply(x, kernel):
        return convolve(x, kernel, None, "float32", stride)

    program = jax.jit(apply).lower(x, kernel)
    assert ("stablehlo.while" in program.as_text()) == in_tiles
    y, transpose = jax.vjp(apply, x, kernel)
    scale = np.sqrt(kernel[..., 0].size)
    np.testing.assert_allclose(y[0] / scale, conv_loop(x[0], kernel, stride, 1) / scale, atol=1e-5)
    y_grad = rng.standard_normal(y.shape).astype(np.float32)
    expected_x, expected_kernel = conv_gradient_loop(x[0], kernel, y_grad[0], stride)
    x_grad, kernel_grad = transpose(y_grad)
    np.testing.assert_allclose(x_grad[0] / scale, expected_x / scale, atol=1e-5)
    np.testing.assert_allclose(kernel_grad / scale, expected_kernel / scale, atol=1e-5)


@pytest.mark.cpu_forms
@pytest.mark.parametrize(("stride", "as_product"), [(1, True), (2, False)])
def test_one_by_one_kernels_are_matrix_products(stride, as_product):
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((1, 1, 3, 4), jnp.float32)
    apply = jax.jit(lambda *args: convolve(*args, None, "float32", stride))
    assert ("stablehlo.convolution" not in apply.lower(x, kernel).as_text()) == as_product


@pytest.mark.cpu_forms
def test_winograd_only_for_enough_work():
    def is_plain(height):
        x = jax.ShapeDtypeStruct((1, height, 50, 256), jnp.float32)
        kernel = jax.ShapeDtypeStruct((3, 3, 256, 256), jnp.float32)
        program = jax.jit(lambda *args: convolve(*args, None, "float32")).lower(x, kernel)
        return "stablehlo.convolution" in program.as_text()

    # A row of 50 pixels takes 2 * 9 * 256 * 256 * 50 operations, 5e9 of them 84.8 rows.
    assert is_plain(84)
    assert not is_plain(85)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("block_channels", [1, 8, 64])
@pytest.mark.parametrize("min_pixels", [1, 10_000])
def test_grouped_convolutions_and_their_gradients(monkeypatch, stride, block_channels, min_pixels):
    # Dense blocks of one group, two and all. Below so many pixels XLA's own form has the outputs.
    monkeypatch.setattr(convolution, "MIN_BLOCK_CHANNELS", block_channels)
    monkeypatch.setattr(convolution, "MIN_PIXELS", min_pixels)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 8, 16)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 4, 12)).astype(np.float32)

    def apply(x, kernel):
        return convolve(x[None], kernel, None, "float32", stride)[0]

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


@pytest.mark.parametrize(("size", "features"), [(1, 5), (3, 5), (3, 40)])
def test_convolutions_and_gradients_under_vmap(size, features):
    # 40 features make the kernel larger than x.
    rng = np.random.default_rng(0)
    x = jnp.array(rng.standard_normal((3, 1, 17, 16, 4)), jnp.float32)
    kernels = jnp.array(rng.standard_normal((3, size, size, 4, features)), jnp.float32)

    def total(x, kernel):
        return jnp.sum(jnp.sin(convolve(x, kernel, None, "float32")))

    one = jax.value_and_grad(total, argnums=(0, 1))
    one_by_one = [one(*pair) for pair in zip(x, kernels, strict=True)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one)
    chex.assert_trees_all_close(jax.vmap(one)(x, kernels), expected, atol=1e-4)


def test_gradient_of_the_bias_is_summed_in_float32():
    x = jnp.ones((1, 128, 160, 1))
    kernel = jnp.ones((1, 1, 1, 1))

    def total(bias):
        return jnp.sum(convolve(x, kernel, bias, "bfloat16").astype(jnp.float32))

    # Sixteen bits stop counting ones at 256.
    assert jax.grad(total)(jnp.zeros(1)) == 128 * 160


@pytest.mark.parametrize(("precision", "stride"), [("float32", 1), ("tf32", 2), ("bfloat16", 1)])
def test_forward_mode_differentiates_the_form_of_gpus(precision, stride):
    # Lowering fails if it meets the form of CPUs, which has only a reverse mode.
    x = jax.ShapeDtypeStruct((1, 32, 32, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 4, 6), jnp.float32)
    bias = jax.ShapeDtypeStruct((6,), jnp.float32)

    def apply(*arrays):
        return jax.jvp(lambda *primals: convolve(*primals, precision, stride), arrays, arrays)

    traced = jax.jit(apply).trace(x, kernel, bias)
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    # The output, and its derivatives by x and by the kernel.
    assert program.count("stablehlo.convolution") == 3


@pytest.mark.cpu_forms
def test_gpus_compute_one_plain_convolution():
    x = jax.ShapeDtypeStruct((1, 128, 128, 256), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 256, 256), jnp.float32)

    def program(platform):
        apply = jax.jit(lambda *arrays: convolve(*arrays, None, "float32"))
        return apply.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()

    assert program("cuda").count("stablehlo.convolution") == 1
    assert "stablehlo.while" not in program("cuda")
    assert "stablehlo.while" in program("cpu")
