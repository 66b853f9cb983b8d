"""NMS: both forms, against the loop."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.ops import nms, nms_sorted
from rpn_jax.ops.nms import keep_by_fixed_point, keep_one_by_one
from tests.oracles import detection
from tests.oracles.boxes import grid_boxes, random_boxes

FORMS = pytest.mark.parametrize(
    "form",
    [jax.jit(form, static_argnums=(2, 3)) for form in (keep_one_by_one, keep_by_fixed_point)],
    ids=["one_by_one", "fixed_point"],
)


def loop(boxes, valid, threshold):
    scores = -np.arange(len(boxes), dtype=np.float32)
    return detection.nms(np.asarray(boxes), scores, np.asarray(valid), threshold)


@FORMS
@pytest.mark.parametrize("boxes", [random_boxes, grid_boxes])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_forms_against_the_loop(form, boxes, threshold):
    rng = np.random.default_rng(int(threshold * 10))
    sets = boxes(rng, 3, 60)
    valid = rng.random((3, 60)) < 0.8
    keep = form(sets, valid, threshold, 60)
    for got, one, exists in zip(keep, sets, valid, strict=True):
        np.testing.assert_array_equal(got, loop(one, exists, threshold))


@FORMS
def test_all_boxes_equal(form):
    boxes = jnp.tile(jnp.array([2, 3, 40, 50.0]), (1, 50, 1))
    valid = jnp.arange(50)[None] >= 4
    keep = form(boxes, valid, 0.7, 50)
    assert np.flatnonzero(keep[0]).tolist() == [4]


@FORMS
def test_a_chain_in_which_each_suppresses_the_next(form):
    """Every box overlaps only its neighbours above the threshold: each second one survives."""
    left = jnp.arange(64) * 10.0
    zeros = jnp.zeros(64)
    boxes = jnp.stack([left, zeros, left + 35, zeros + 10], axis=-1)[None]
    keep = form(boxes, jnp.ones((1, 64), bool), 0.5, 64)
    assert keep[0].tolist() == [True, False] * 32


@FORMS
def test_no_valid_box_and_no_box(form):
    boxes = random_boxes(np.random.default_rng(0), 2, 9)
    assert not np.any(form(boxes, np.zeros((2, 9), bool), 0.7, 9))


@FORMS
@pytest.mark.parametrize(("height", "kept"), [(69, True), (70, True), (71, False)])
def test_only_above_the_threshold_suppresses(form, height, kept):
    boxes = jnp.array([[[0, 0, 100, 100], [0, 0, 100, height]]], jnp.float32)
    assert bool(form(boxes, jnp.ones((1, 2), bool), 0.7, 2)[0, 1]) is kept


@FORMS
def test_boxes_without_area_suppress_nothing(form):
    boxes = jnp.array([[[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 0]]], jnp.float32)
    assert form(boxes, jnp.ones((1, 3), bool), 0.0, 3).all()


@FORMS
@pytest.mark.parametrize("max_kept", [1, 5, 1000])
def test_at_most_max_kept_of_each_set(form, max_kept):
    rng = np.random.default_rng(8)
    boxes, valid = random_boxes(rng, 2, 50), rng.random((2, 50)) < 0.9
    keep = form(boxes, valid, 0.5, max_kept)
    for got, one, exists in zip(keep, boxes, valid, strict=True):
        expected = np.flatnonzero(loop(one, exists, 0.5))[:max_kept]
        assert np.flatnonzero(got).tolist() == expected.tolist()


def test_scores_order_the_boxes_and_ties_keep_the_lower_index():
    rng = np.random.default_rng(9)
    boxes = random_boxes(rng, 2, 3, 40)
    scores = rng.integers(0, 5, (2, 3, 40)).astype(np.float32)
    valid = rng.random((2, 3, 40)) < 0.8
    keep = jax.jit(nms)(boxes, scores, valid, 0.4)
    one_set = partial(nms, iou_threshold=0.4)
    vmapped = jax.jit(jax.vmap(jax.vmap(one_set)))(boxes, scores, valid)
    np.testing.assert_array_equal(keep, vmapped)
    for i in np.ndindex(2, 3):
        np.testing.assert_array_equal(keep[i], detection.nms(boxes[i], scores[i], valid[i], 0.4))


def test_sorted_keeps_leading_axes():
    boxes = random_boxes(np.random.default_rng(3), 2, 3, 20)
    keep = jax.jit(nms_sorted, static_argnums=3)(boxes, np.ones((2, 3, 20), bool), 0.5, 20)
    assert keep.shape == (2, 3, 20)
    np.testing.assert_array_equal(keep[1, 2], loop(boxes[1, 2], np.ones(20, bool), 0.5))
