"""Matching, label by label."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.ops import assign_anchors
from tests.oracles import detection
from tests.oracles.boxes import grid_boxes, random_boxes
from tests.oracles.golden import CASES, case_anchors, case_validity, load_case, padded_boxes

THRESHOLDS = (0.7, 0.3, 0.3)


@jax.jit
def assign(anchors, valid, boxes, mask):
    return assign_anchors(anchors, valid, boxes, mask, *THRESHOLDS)


@pytest.mark.parametrize("boxes", [random_boxes, grid_boxes])
@pytest.mark.parametrize("seed", range(4))
def test_against_the_loop(boxes, seed):
    rng = np.random.default_rng(seed)
    anchors, ground_truth = boxes(rng, 203), boxes(rng, 9)
    valid, mask = rng.random(203) < 0.8, rng.random(9) < 0.7
    labels = assign(anchors, valid, ground_truth, mask)
    assert labels.dtype == jnp.int32
    np.testing.assert_array_equal(labels, detection.assign(anchors, valid, ground_truth, mask))


@pytest.mark.parametrize(
    ("height", "label"), [(69, -1), (70, 1), (71, 1), (29, 0), (30, -1), (31, -1)]
)
def test_thresholds_count_exactly(height, label):
    """One box of 100 x 100 and an anchor with IoU height / 100, beside the box's best anchor."""
    anchors = jnp.array([[0, 0, 100, 100], [0, 0, 100, height]], jnp.float32)
    # The best anchor of the box is its own copy, so the other is judged by thresholds alone.
    labels = assign(anchors, jnp.ones(2, bool), anchors[:1], jnp.ones(1, bool))
    assert labels.tolist() == [1, label]


@pytest.mark.parametrize(("height", "label"), [(29, 0), (30, 1), (31, 1)])
def test_a_box_takes_its_best_anchor_from_the_minimum_iou_on(height, label):
    """The only anchor overlaps the box with an IoU of height / 100. The minimum is 0.3."""
    anchors = jnp.array([[0, 0, 100, height]], jnp.float32)
    boxes = jnp.array([[0, 0, 100, 100]], jnp.float32)
    assert assign(anchors, jnp.ones(1, bool), boxes, jnp.ones(1, bool)).tolist() == [label]


def test_the_first_of_two_equally_good_boxes_gets_the_anchor():
    """The IoU of the first anchor is 0.8 with both boxes, and each box has a better anchor."""
    boxes = jnp.array([[0, 0, 100, 80], [0, 20, 100, 100]], jnp.float32)
    anchors = jnp.concatenate([jnp.array([[0, 0, 100, 100]], jnp.float32), boxes])
    labels = assign(anchors, jnp.ones(3, bool), boxes, jnp.ones(2, bool))
    assert labels.tolist() == [1, 1, 2]


def test_best_anchors_are_shared_and_the_last_box_wins():
    anchors = jnp.array([[0, 0, 10, 5], [0, 5, 10, 10], [50, 50, 60, 60]], jnp.float32)
    box = jnp.array([0, 0, 10, 10], jnp.float32)
    boxes, exist = jnp.stack([box, box]), jnp.ones(2, bool)
    valid = jnp.ones(3, bool)
    assert assign(anchors, valid, boxes[:1], exist[:1]).tolist() == [1, 1, 0]
    assert assign(anchors, valid, boxes, exist).tolist() == [2, 2, 0]
    assert assign(anchors, valid, boxes, jnp.array([True, False])).tolist() == [1, 1, 0]
    assert assign(anchors, jnp.array([False, True, True]), boxes, exist).tolist() == [-2, 2, 0]


def test_a_best_anchor_may_leave_a_better_box():
    """The anchor overlaps box 1 by 0.9 and box 2 by 0.8, but is box 2's best: box 2 takes it."""
    anchors = jnp.array([[0, 0, 100, 100], [0, 0, 100, 90]], jnp.float32)
    boxes = jnp.array([[0, 0, 100, 90], [0, 0, 80, 100]], jnp.float32)
    labels = assign(anchors, jnp.ones(2, bool), boxes, jnp.ones(2, bool))
    assert labels.tolist() == [2, 1]


def test_a_box_too_small_for_every_anchor_takes_none():
    anchors = jnp.array([[0, 0, 32, 32]], jnp.float32)
    boxes = jnp.array([[0, 0, 4, 4]], jnp.float32)
    assert assign(anchors, jnp.ones(1, bool), boxes, jnp.ones(1, bool)).tolist() == [0]


@pytest.mark.parametrize("box", [[3, 3, 3, 9], [0, 0, 0, 0], [9, 9, 1, 1], [9, 0, 1, 8]], ids=str)
def test_boxes_without_area_take_no_part(box):
    rng = np.random.default_rng(0)
    anchors = random_boxes(rng, 40, size=10)
    boxes = np.array([box, anchors[5]], np.float32)
    valid, exist = np.ones(40, bool), np.ones(2, bool)
    labels = assign(anchors, valid, boxes, exist)
    np.testing.assert_array_equal(labels, assign(anchors, valid, boxes, np.array([False, True])))
    assert labels[5] == 2


def test_pictures_without_boxes_or_without_anchors():
    anchors = random_boxes(np.random.default_rng(0), 10)
    some, none = np.ones(10, bool), np.zeros(10, bool)
    boxes = anchors[:3]
    assert assign(anchors, some, boxes, np.zeros(3, bool)).tolist() == [0] * 10
    assert assign(anchors, none, boxes, np.ones(3, bool)).tolist() == [-2] * 10
    assert assign(anchors, some, boxes[:0], np.zeros(0, bool)).tolist() == [0] * 10


def test_vmap_gives_each_picture_its_own_labels():
    rng = np.random.default_rng(5)
    anchors, boxes = grid_boxes(rng, 100), grid_boxes(rng, 4, 6)
    valid = rng.random((4, 100)) < 0.7
    mask = np.arange(6) < np.array([0, 1, 6, 3])[:, None]
    batched = jax.vmap(assign, (None, 0, 0, 0))(anchors, valid, boxes, mask)
    for picture, labels in enumerate(batched):
        expected = detection.assign(anchors, valid[picture], boxes[picture], mask[picture])
        np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("name", CASES)
def test_every_label_of_the_reference(name):
    case = load_case(name)
    anchors = case_anchors(case)
    valid = case_validity(case)
    labels = jax.vmap(assign, (None, 0, 0, 0))(anchors, valid, *padded_boxes(case))
    for picture, got in enumerate(labels):
        np.testing.assert_array_equal(got, case.fields[f"assigned_{picture}"])
