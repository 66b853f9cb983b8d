"""RoIAlign and the choice of levels, against loops over bins and samples."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from rpn_jax.errors import UserError
from rpn_jax.ops import assign_levels, roi_align
from tests.oracles import roi_align as oracle
from tests.oracles.boxes import random_boxes

SHAPES = ((40, 56), (20, 28), (10, 14), (5, 7))
STRIDES = (4, 8, 16, 32)
HEIGHT, WIDTH = 160, 224
CHANNELS = 3
EDGE_CASES = np.array(
    [
        [0, 0, 0, 0],  # does not exist
        [10, 10, 10, 90],  # no width
        [30, 20, 10, 60],  # x2 < x1
        [0, 0, WIDTH, HEIGHT],  # the whole picture
        [-500, -700, 900, 800],  # far larger than the picture
        [300, 300, 400, 380],  # outside
        [-400, 20, -100, 60],  # outside on the other side
        [WIDTH - 3, HEIGHT - 2, WIDTH, HEIGHT],  # in the last corner
        [-2, -3, 3, 2],  # over the first corner
        [0, 50, WIDTH, 50.224],  # 1000:1
        [100, 0, 100.16, HEIGHT],  # 1:1000
        [20, 20, 20.01, 20.01],  # tiny
        [2, 2, 30, 30],  # bins of exactly one cell
        [2, 2, 58, 58],  # bins of exactly two cells
        [0, 0, 84, 84],  # bins of exactly three cells
    ],
    np.float32,
)


def made_levels(seed: int, batch: int = 2) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return tuple(
        rng.standard_normal((batch, *shape, CHANNELS)).astype(np.float32) for shape in SHAPES
    )


def made_boxes(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-10, [WIDTH + 10, HEIGHT + 10], (count, 2))
    sizes = np.exp(rng.uniform(-1, 6, (count, 2)))
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1).astype(np.float32)


def loops(levels: tuple[np.ndarray, ...], boxes: np.ndarray, size: int) -> np.ndarray:
    chosen = np.asarray(assign_levels(jnp.asarray(boxes), len(levels)))
    return np.array(
        [
            [
                oracle.roi_align(levels[level][picture], box, STRIDES[level], size)
                for box, level in zip(boxes[picture], chosen[picture], strict=True)
            ]
            for picture in range(len(boxes))
        ]
    )


def pool(levels: tuple[np.ndarray, ...], boxes: np.ndarray, size: int) -> jax.Array:
    strides = STRIDES[: len(levels)]
    return jax.jit(partial(roi_align, strides=strides, size=size))(levels, boxes)


@pytest.fixture(params=["cpu", "default"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make every `lax.platform_dependent` of RoIAlign take one form."""

    def chosen(*arguments, cpu, default):
        return (cpu if request.param == "cpu" else default)(*arguments)

    monkeypatch.setattr(lax, "platform_dependent", chosen)
    return request.param


@pytest.mark.usefixtures("all_groups_of_roi_align")
@pytest.mark.parametrize(("seed", "size"), [(0, 7), (1, 14)])
def test_pooled_features_equal_the_loops(form: str, seed: int, size: int) -> None:
    levels = made_levels(seed)
    boxes = np.stack([np.concatenate([EDGE_CASES, made_boxes(seed + i, 20)]) for i in range(2)])
    pooled = pool(levels, boxes, size)
    np.testing.assert_allclose(pooled, loops(levels, boxes, size), rtol=0, atol=1e-5)


def test_boxes_that_do_not_exist_pool_zeros(form: str) -> None:
    pooled = pool(made_levels(0), np.zeros((2, 3, 4), np.float32), 7)
    assert pooled.shape == (2, 3, 7, 7, CHANNELS)
    assert not np.any(pooled)


def test_a_picture_without_boxes_has_no_features(form: str) -> None:
    pooled = pool(made_levels(0), np.zeros((2, 0, 4), np.float32), 7)
    assert pooled.shape == (2, 0, 7, 7, CHANNELS)


def test_more_boxes_than_a_chunk_holds(form: str) -> None:
    levels, boxes = made_levels(3, batch=1), made_boxes(3, 300)[None]
    pooled = pool(levels, boxes, 2)
    np.testing.assert_allclose(pooled, loops(levels, boxes, 2), rtol=0, atol=1e-5)


def test_a_map_smaller_than_a_tile_and_wider_than_two(form: str) -> None:
    features = np.random.default_rng(0).standard_normal((1, 3, 100, 2)).astype(np.float32)
    boxes = np.array([[[0, 0, 400, 12], [5, 1, 390, 11], [200, 4, 400, 8]]], np.float32)
    pooled = pool((features,), boxes, 7)
    want = [[oracle.roi_align(features[0], box, 4, 7) for box in boxes[0]]]
    np.testing.assert_allclose(pooled, want, rtol=0, atol=1e-5)


def test_the_gradient_is_the_transpose_of_the_pooling(form: str) -> None:
    """The pooling is linear in the features, so each gradient entry is one entry of its matrix."""
    shape, size = (1, 6, 9, 1), 2
    boxes = np.array([[[0, 0, 36, 24], [3, 5, 11, 9], [-9, 2, 20, 40], [0, 0, 0, 0]]], np.float32)
    units = np.eye(6 * 9, dtype=np.float32).reshape(-1, *shape[1:])
    matrix = np.array(
        [[oracle.roi_align(unit, box, 4, size) for box in boxes[0]] for unit in units]
    )
    grad = np.random.default_rng(1).standard_normal((1, 4, size, size, 1)).astype(np.float32)
    features = np.zeros(shape, np.float32)
    _, transpose = jax.vjp(lambda x: pool((x,), boxes, size), features)
    want = np.sum(matrix * grad[0], axis=(1, 2, 3, 4)).reshape(shape)
    np.testing.assert_allclose(transpose(grad)[0], want, rtol=0, atol=1e-5)


def test_gradients_of_both_forms_agree_on_a_pyramid() -> None:
    levels = made_levels(2)
    boxes = np.stack([np.concatenate([EDGE_CASES, made_boxes(7 + i, 60)]) for i in range(2)])
    shape = (*boxes.shape[:2], 7, 7, CHANNELS)
    grad = np.random.default_rng(2).standard_normal(shape).astype(np.float32)

    def gradients(name: str) -> tuple[jax.Array, ...]:
        def chosen(*arguments, cpu, default):
            return (cpu if name == "cpu" else default)(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lax, "platform_dependent", chosen)

            @jax.jit
            def gradient(levels: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
                return jax.vjp(lambda x: pool(x, boxes, 7), levels)[1](grad)[0]

            return gradient(levels)

    one_form, other_form = gradients("cpu"), gradients("default")
    assert sum(np.any(level) for level in one_form) >= 3
    for one, other in zip(one_form, other_form, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


def test_boxes_have_no_gradient(form: str) -> None:
    levels, boxes = made_levels(0), np.stack([made_boxes(0, 4), made_boxes(1, 4)])
    grad = jax.grad(lambda boxes: jnp.sum(pool(levels, boxes, 7) ** 2))(boxes)
    assert not np.any(grad)


def test_vmap_pools_each_entry_by_itself(form: str) -> None:
    levels = tuple(level[:, None] for level in made_levels(4))
    boxes = np.stack([made_boxes(4, 5), made_boxes(5, 5)])[:, None]
    pooled = jax.vmap(partial(pool, size=3))(levels, boxes)
    want = loops(tuple(level[:, 0] for level in levels), boxes[:, 0], 3)
    np.testing.assert_allclose(pooled[:, 0], want, rtol=0, atol=1e-5)


def test_bfloat16_features_are_pooled_in_bfloat16(form: str) -> None:
    levels, boxes = made_levels(5), np.stack([made_boxes(5, 8), made_boxes(6, 8)])
    halves = tuple(jnp.asarray(level, jnp.bfloat16) for level in levels)
    pooled = pool(halves, boxes, 7)
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        pooled.astype(np.float32), loops(levels, boxes, 7), rtol=0.02, atol=0.03
    )


@pytest.mark.parametrize(("side", "level"), [(112, 1), (224, 2), (448, 3)])
def test_a_level_starts_at_its_side(side: float, level: int) -> None:
    sides = np.array([np.nextafter(np.float32(side), np.float32(0)) - 0.001, side], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    np.testing.assert_array_equal(assign_levels(boxes, 4), [level - 1, level])


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("dtype", [jnp.int16, jnp.float16])
def test_levels_are_computed_in_float32(dtype: jnp.dtype) -> None:
    boxes = jnp.array([[0, 0, 250, 250], [0, 0, 300, 300]], dtype)
    np.testing.assert_array_equal(assign_levels(boxes, 4), [2, 2])


def test_pooling_with_64_bit_types() -> None:
    program = (
        "import jax, jax.numpy as jnp\n"
        "from rpn_jax.ops import roi_align\n"
        "level = jnp.ones((1, 8, 8, 2), jnp.float32)\n"
        "boxes = jnp.array([[[4, 4, 40, 40]]], jnp.float32)\n"
        "total = lambda x: jnp.sum(roi_align((x,), boxes, (8,), 2))\n"
        "value, gradient = jax.value_and_grad(total)(level)\n"
        "print(value, gradient.sum())"
    )
    environment = {**os.environ, "JAX_ENABLE_X64": "1"}
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert [float(each) for each in printed.split()] == pytest.approx([8, 8], rel=1e-6)


def test_levels_of_extreme_boxes() -> None:
    boxes = np.array([[0, 0, 0, 0], [0, 0, 5, 0], [0, 0, 9e4, 9e4], [9, 0, 4, 7]], np.float32)
    np.testing.assert_array_equal(assign_levels(boxes, 4), [0, 0, 3, 0])


def test_one_map_takes_every_box() -> None:
    assert not np.any(assign_levels(made_boxes(0, 50), 1))


@pytest.mark.usefixtures("no_shape_checks")
def test_levels_strides_and_boxes_must_agree() -> None:
    levels = (jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 4, 4, 3)))
    boxes = jnp.zeros((2, 5, 4))
    with pytest.raises(UserError, match=r"^strides = \(8,\): there are 2 levels, but 1 strides"):
        roi_align(levels, boxes, (8,), 7)
    with pytest.raises(UserError, match=r"^roi_align: levels\[0\] has the shape \(2, 8, 8, 3\)"):
        roi_align(levels, boxes[:1], (8, 16), 7)


def test_under_shard_map_with_gradient() -> None:
    rng = np.random.default_rng(5)
    levels = tuple(jnp.asarray(rng.normal(size=(1, n, n, 3)), jnp.float32) for n in (12, 6))
    boxes = jnp.asarray(random_boxes(rng, 1, 4, size=48))
    share = PartitionSpec("pictures")
    mesh = Mesh(np.array(jax.devices()[:1]), "pictures")

    def value_and_gradient(levels, boxes):
        pooled, pull = jax.vjp(lambda x: roi_align(x, boxes, (4, 8), 7), levels)
        return pooled, pull(jnp.cos(pooled))

    sharded = jax.shard_map(value_and_gradient, mesh=mesh, in_specs=(share, share), out_specs=share)
    expected = jax.tree.leaves(jax.jit(value_and_gradient)(levels, boxes))
    for got, want in zip(jax.tree.leaves(jax.jit(sharded)(levels, boxes)), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
