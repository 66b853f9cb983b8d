"""NMS: both forms, against the loop."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from rpn_jax.ops import nms, nms_per_class, nms_per_level
from rpn_jax.ops.cpu.nms import keep_one_by_one, keep_one_by_one_of_classes
from rpn_jax.ops.nms import keep_by_fixed_point, keep_by_fixed_point_of_classes
from tests.oracles import detection
from tests.oracles.boxes import grid_boxes, random_boxes

FORMS = pytest.mark.parametrize(
    "form",
    [jax.jit(form, static_argnums=(3, 4)) for form in (keep_one_by_one, keep_by_fixed_point)],
    ids=["one_by_one", "fixed_point"],
)


def descending(rng: np.random.Generator, *shape: int, values: int = 1000) -> np.ndarray:
    """Sorted scores with ties; fewer ``values`` make more of them."""
    scores = rng.integers(0, values, shape).astype(np.float32)
    return -np.sort(-scores, axis=-1)


def loop(boxes, scores, valid, threshold, count) -> list[int]:
    """Flat indices of the best that NMS keeps of [L, N] boxes, best first."""
    keep = np.concatenate(
        [detection.nms(*level, threshold) for level in zip(boxes, scores, valid, strict=True)]
    )
    best_first = np.argsort(-scores.reshape(-1), kind="stable")
    return [int(i) for i in best_first if keep[i]][:count]


def kept(indices, found) -> list[int]:
    """The indices that were found, which must be the first ones; 0 behind them."""
    found = np.asarray(found)
    assert np.all(np.diff(found.astype(int)) <= 0)
    assert not np.any(np.asarray(indices)[~found])
    return np.asarray(indices)[found].tolist()


def kept_of_one_level(form, boxes, valid, threshold) -> list[int]:
    count = len(valid)
    scores = -jnp.arange(count, dtype=jnp.float32)
    found = form(boxes[None, None], scores[None, None], valid[None, None], threshold, count)
    return kept(*(x[0] for x in found))


@FORMS
@pytest.mark.parametrize("boxes", [random_boxes, grid_boxes])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_forms_against_the_loop(form, boxes, threshold):
    rng = np.random.default_rng(int(threshold * 10))
    sets = boxes(rng, 2, 3, 40)
    scores = descending(rng, 2, 3, 40, values=30)
    valid = rng.random((2, 3, 40)) < 0.8
    indices, found = form(sets, scores, valid, threshold, 120)
    for i in range(2):
        expected = loop(sets[i], scores[i], valid[i], threshold, 120)
        assert kept(indices[i], found[i]) == expected


@FORMS
@pytest.mark.parametrize("count", [1, 5, 60, 61, 1000])
def test_the_best_of_all_levels(form, count):
    rng = np.random.default_rng(8)
    boxes, scores = random_boxes(rng, 2, 3, 20), descending(rng, 2, 3, 20, values=8)
    valid = rng.random((2, 3, 20)) < 0.9
    valid[0, 1] = False
    indices, found = form(boxes, scores, valid, 0.5, count)
    assert indices.shape == found.shape == (2, count)
    for i in range(2):
        expected = loop(boxes[i], scores[i], valid[i], 0.5, count)
        assert kept(indices[i], found[i]) == expected


@FORMS
def test_equal_boxes_of_two_levels_are_both_kept(form):
    boxes = np.tile(np.array([2, 3, 40, 50], np.float32), (1, 2, 3, 1))
    scores = np.array([[[5, 4, 3], [9, 4, 1]]], np.float32)
    indices, found = form(boxes, scores, np.ones((1, 2, 3), bool), 0.7, 6)
    assert kept(indices[0], found[0]) == [3, 0]


@FORMS
def test_a_score_of_minus_infinity_is_a_score(form):
    boxes = random_boxes(np.random.default_rng(1), 1, 2, 3)
    scores = np.array([[[-np.inf] * 3, [0, -np.inf, -np.inf]]], np.float32)
    valid = np.array([[[False, False, True], [True, False, False]]])
    indices, found = form(boxes, scores, valid, 1.0, 6)
    assert kept(indices[0], found[0]) == [3, 2]


@FORMS
def test_all_boxes_equal(form):
    boxes = jnp.tile(jnp.array([2, 3, 40, 50.0]), (50, 1))
    assert kept_of_one_level(form, boxes, jnp.arange(50) >= 4, 0.7) == [4]


@FORMS
def test_a_chain_in_which_each_suppresses_the_next(form):
    """Every box overlaps only its neighbours above the threshold: each second one survives."""
    left = jnp.arange(64) * 10.0
    zeros = jnp.zeros(64)
    boxes = jnp.stack([left, zeros, left + 35, zeros + 10], axis=-1)
    assert kept_of_one_level(form, boxes, jnp.ones(64, bool), 0.5) == list(range(0, 64, 2))


@FORMS
def test_no_valid_box(form):
    boxes = jnp.asarray(random_boxes(np.random.default_rng(0), 9))
    assert kept_of_one_level(form, boxes, jnp.zeros(9, bool), 0.7) == []


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_no_box(shape):
    keep = nms(jnp.zeros((*shape, 4)), jnp.zeros(shape), jnp.zeros(shape, bool), 0.5)
    assert (keep.shape, keep.dtype) == (shape, bool)


@FORMS
@pytest.mark.parametrize(("height", "survivors"), [(69, [0, 1]), (70, [0, 1]), (71, [0])])
def test_only_above_the_threshold_suppresses(form, height, survivors):
    boxes = jnp.array([[0, 0, 100, 100], [0, 0, 100, height]], jnp.float32)
    assert kept_of_one_level(form, boxes, jnp.ones(2, bool), 0.7) == survivors


@FORMS
def test_boxes_without_area_suppress_nothing(form):
    boxes = jnp.array([[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 0]], jnp.float32)
    assert kept_of_one_level(form, boxes, jnp.ones(3, bool), 0.0) == [0, 1, 2]


def test_scores_order_the_boxes_and_ties_keep_the_lower_index():
    rng = np.random.default_rng(9)
    boxes = random_boxes(rng, 2, 3, 40)
    scores = rng.integers(0, 5, (2, 3, 40)).astype(np.float32)
    valid = rng.random((2, 3, 40)) < 0.8
    one_set = partial(nms, iou_threshold=0.4)
    keep = jax.jit(one_set)(boxes, scores, valid)
    vmapped = jax.jit(jax.vmap(jax.vmap(one_set)))(boxes, scores, valid)
    np.testing.assert_array_equal(keep, vmapped)
    for i in np.ndindex(2, 3):
        np.testing.assert_array_equal(keep[i], detection.nms(boxes[i], scores[i], valid[i], 0.4))


@pytest.mark.usefixtures("no_shape_checks")
def test_a_mask_of_numbers_gives_a_mask():
    boxes = np.array([[0, 0, 10, 10], [1, 1, 10, 10], [50, 50, 90, 90]], np.float32)
    keep = nms(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.ones(3, int), 0.5)
    assert keep.dtype == bool
    assert keep.tolist() == [True, False, True]


def test_leading_axes_and_vmap():
    rng = np.random.default_rng(3)
    boxes, scores = random_boxes(rng, 2, 3, 2, 20), descending(rng, 2, 3, 2, 20)
    valid = np.ones((2, 3, 2, 20), bool)
    best = partial(nms_per_level, iou_threshold=0.5, count=30)
    indices, found = jax.jit(best)(boxes, scores, valid)
    assert indices.shape == found.shape == (2, 3, 30)
    vmapped = jax.jit(jax.vmap(jax.vmap(best)))(boxes, scores, valid)
    np.testing.assert_array_equal(indices, vmapped[0])
    np.testing.assert_array_equal(found, vmapped[1])
    for i in np.ndindex(2, 3):
        assert kept(indices[i], found[i]) == loop(boxes[i], scores[i], valid[i], 0.5, 30)


def test_shard_map_with_its_checks():
    """They ask that what a loop starts with varies over the devices as its results do."""
    rng = np.random.default_rng(4)
    boxes, scores = random_boxes(rng, 2, 3, 20), descending(rng, 2, 3, 20)
    valid = np.ones((2, 3, 20), bool)
    best = partial(nms_per_level, iou_threshold=0.5, count=30)
    mesh, spec = Mesh(np.array(jax.devices()[:1]), ("devices",)), PartitionSpec("devices")
    sharded = jax.jit(jax.shard_map(best, mesh=mesh, in_specs=spec, out_specs=spec))
    for got, expected in zip(
        sharded(boxes, scores, valid), jax.jit(best)(boxes, scores, valid), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


CLASS_FORMS = pytest.mark.parametrize(
    "form",
    [
        jax.jit(form, static_argnums=(3, 4))
        for form in (keep_one_by_one_of_classes, keep_by_fixed_point_of_classes)
    ],
    ids=["one_by_one", "fixed_point"],
)


def loop_of_classes(boxes, scores, valid, threshold, count) -> list[int]:
    """Flat indices of the best that NMS keeps of [N, C] boxes, best first."""
    keep = np.stack(
        [
            detection.nms(boxes[:, c], scores[:, c], valid[:, c], threshold)
            for c in range(scores.shape[1])
        ],
        axis=1,
    )
    best_first = np.argsort(-scores.reshape(-1), kind="stable")
    return [int(i) for i in best_first if keep.reshape(-1)[i]][:count]


@CLASS_FORMS
@pytest.mark.parametrize("boxes", [random_boxes, grid_boxes])
@pytest.mark.parametrize("values", [3, 1000], ids=["many ties", "few ties"])
@pytest.mark.parametrize("count", [7, 200])
def test_forms_of_classes_against_the_loop(form, boxes, values, count):
    rng = np.random.default_rng(values + count)
    shape = (2, 30, 4)
    some_boxes = boxes(rng, *shape)
    scores = rng.integers(0, values, shape).astype(np.float32) / values
    valid = rng.random(shape) < 0.7
    indices, found = form(some_boxes, scores, valid, 0.5, count)
    for i in range(2):
        expected = loop_of_classes(some_boxes[i], scores[i], valid[i], 0.5, count)
        assert kept(indices[i], found[i]) == expected


def test_nms_per_class_under_jit_and_vmap_and_without_boxes():
    rng = np.random.default_rng(3)
    boxes, scores = random_boxes(rng, 3, 10, 2), rng.random((3, 10, 2)).astype(np.float32)
    valid = np.ones(scores.shape, bool)
    together = nms_per_class(boxes, scores, valid, 0.5, 6)
    mapped = jax.jit(jax.vmap(lambda *x: nms_per_class(*x, 0.5, 6)))(boxes, scores, valid)
    for array, other in zip(together, mapped, strict=True):
        np.testing.assert_array_equal(array, other)
    indices, found = nms_per_class(boxes[:, :0], scores[:, :0], valid[:, :0], 0.5, 6)
    assert indices.shape == found.shape == (3, 6)
    assert not np.any(found)


def test_no_box_is_wanted() -> None:
    boxes, scores, valid = np.zeros((3, 5, 4)), np.zeros((3, 5)), np.ones((3, 5), bool)
    for form in (nms_per_class, nms_per_level):
        assert [array.shape for array in form(boxes, scores, valid, 0.5, 0)] == [(0,), (0,)]
