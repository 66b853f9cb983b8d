"""Areas, IoU and clipping."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpn_jax.ops import box_area, box_iou, clip_boxes
from tests.oracles import detection
from tests.oracles.boxes import grid_boxes, random_boxes


def test_known_overlaps():
    a = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [3, 3, 3, 9]], np.float32)
    b = np.array([[0, 0, 10, 10], [5, 5, 15, 15], [10, 0, 20, 10]], np.float32)
    expected = [[1, 25 / 175, 0], [0.5, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(box_iou(a, b), expected, rtol=1e-6)


@pytest.mark.parametrize("boxes", [random_boxes, grid_boxes])
@pytest.mark.parametrize("jitted", [True, False])
def test_iou_is_bit_equal_to_the_loop(boxes, jitted):
    rng = np.random.default_rng(0)
    a, b = boxes(rng, 60), boxes(rng, 90)
    function = jax.jit(box_iou) if jitted else box_iou
    np.testing.assert_array_equal(function(a, b), detection.iou_table(a, b))


def test_iou_keeps_leading_axes_and_vmaps():
    rng = np.random.default_rng(1)
    a, b = random_boxes(rng, 2, 3, 4), random_boxes(rng, 2, 3, 5)
    table = box_iou(a, b)
    assert table.shape == (2, 3, 4, 5)
    np.testing.assert_array_equal(table[1, 2], box_iou(a[1, 2], b[1, 2]))
    np.testing.assert_array_equal(table[0], jax.jit(jax.vmap(box_iou))(a[0], b[0]))


def test_boxes_without_area_overlap_nothing():
    boxes = jnp.array([[5, 5, 5, 5], [5, 5, 5, 9], [9, 9, 5, 5], [0, 0, 0, 0.0]])
    np.testing.assert_array_equal(box_area(boxes), np.zeros(4))
    np.testing.assert_array_equal(box_iou(boxes, boxes), np.zeros((4, 4)))


coordinate = st.floats(-1e4, 1e4, width=32)
box = st.tuples(coordinate, coordinate, coordinate, coordinate)


@settings(max_examples=60, deadline=None)
@given(a=box, b=box)
def test_iou_is_symmetric_and_within_zero_and_one(a, b):
    one, other = np.array([a], np.float32), np.array([b], np.float32)
    forward, backward = box_iou(one, other), box_iou(other, one)
    np.testing.assert_array_equal(forward, backward)
    assert 0 <= float(forward[0, 0]) <= 1 + 1e-6


def test_clipping_uses_each_pictures_own_size():
    boxes = jnp.array([[-5, -6, 300, 400], [10, 20, 30, 40.0]])
    sizes = jnp.array([[100, 200], [25, 20]])
    clipped = clip_boxes(jnp.stack([boxes, boxes]), sizes)
    expected = [[[0, 0, 200, 100], [10, 20, 30, 40]], [[0, 0, 20, 25], [10, 20, 20, 25]]]
    np.testing.assert_array_equal(clipped, expected)
    np.testing.assert_array_equal(clip_boxes(boxes, sizes[1]), expected[1])
