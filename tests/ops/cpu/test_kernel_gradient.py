"""The gradient of a convolution's kernel against a plain loop."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from rpn_jax.ops.cpu import kernel_gradient
from rpn_jax.ops.cpu.kernel_gradient import kernel_gradient_by_matmul
from tests.oracles.convolution import conv_gradient_loop

SIZES_AND_STRIDES = [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2), (5, 3), (3, 4)]


@pytest.mark.parametrize(("size", "stride"), SIZES_AND_STRIDES)
@pytest.mark.parametrize("tile_bytes", [1, 1500, 2**21])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 12), (13, 7)])
def test_kernel_gradient_by_matmul_in_any_tiles(
    monkeypatch, size, stride, tile_bytes, height, width
):
    monkeypatch.setattr(kernel_gradient, "TILE_BYTES", tile_bytes)
    rng = np.random.default_rng(height)
    x = rng.standard_normal((4, height, width, 3)).astype(np.float32)
    out = (-(-height // stride), -(-width // stride))
    y_grad = rng.standard_normal((4, *out, 4)).astype(np.float32)
    kernel = np.zeros((size, size, 3, 4), np.float32)
    expected = sum(
        conv_gradient_loop(*picture, stride)[1]
        for picture in zip(x, [kernel] * 4, y_grad, strict=True)
    )
    gradient = jax.jit(kernel_gradient_by_matmul, static_argnums=(2, 3))(x, y_grad, size, stride)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)


def test_shard_map_with_its_checks():
    """They ask that what a loop starts with varies over the devices as its results do."""
    rng = np.random.default_rng(0)
    x, y_grad = (rng.standard_normal((1, 6, 6, n)).astype(np.float32) for n in (3, 4))
    mesh, spec = Mesh(np.array(jax.devices()[:1]), ("devices",)), PartitionSpec("devices")

    def one_device(x, y_grad):
        return kernel_gradient_by_matmul(x, y_grad, 3, 1)

    sharded = jax.jit(jax.shard_map(one_device, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
    expected = jax.jit(one_device)(x, y_grad)
    np.testing.assert_array_equal(sharded(x, y_grad), expected)
