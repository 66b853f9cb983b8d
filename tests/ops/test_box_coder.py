"""Encoding and decoding of boxes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rpn_jax.ops import decode_boxes, encode_boxes
from tests.oracles import detection
from tests.oracles.boxes import random_boxes


def test_by_hand():
    anchor, box = jnp.array([[0.0, 0, 10, 20]]), jnp.array([[5.0, 0, 25, 20]])
    deltas = encode_boxes(anchor, box)
    np.testing.assert_allclose(deltas, [[1.0, 0, np.log(2), 0]], rtol=1e-6)
    np.testing.assert_allclose(decode_boxes(anchor, deltas), box, rtol=1e-6)


def test_encode_against_the_loop():
    rng = np.random.default_rng(0)
    anchors, boxes = random_boxes(rng, 200), random_boxes(rng, 200)
    expected = [detection.encode(a, b) for a, b in zip(anchors, boxes, strict=True)]
    np.testing.assert_allclose(jax.jit(encode_boxes)(anchors, boxes), expected, atol=2e-5)


def test_decode_against_the_loop_with_clamped_sizes():
    rng = np.random.default_rng(1)
    anchors = random_boxes(rng, 200)
    deltas = rng.normal(0, 3, (200, 4)).astype(np.float32)
    assert (np.abs(deltas[:, 2:]) > 4.2).any()
    expected = [detection.decode(a, d) for a, d in zip(anchors, deltas, strict=True)]
    np.testing.assert_allclose(jax.jit(decode_boxes)(anchors, deltas), expected, rtol=1e-4)


def test_huge_deltas_stay_finite():
    deltas = jnp.array([[0, 0, 1e30, -1e30]])
    boxes = decode_boxes(jnp.array([[0, 0, 16, 16.0]]), deltas)
    np.testing.assert_allclose(boxes[0, 2] - boxes[0, 0], 1000, rtol=1e-5)
    np.testing.assert_allclose(boxes[0, 3] - boxes[0, 1], 0.256, rtol=1e-4)


def test_round_trip_with_leading_axes_in_bfloat16():
    rng = np.random.default_rng(2)
    anchors, boxes = random_boxes(rng, 3, 7), random_boxes(rng, 3, 7)
    deltas = encode_boxes(anchors, boxes)
    np.testing.assert_allclose(decode_boxes(anchors, deltas), boxes, atol=1e-3)
    low = deltas.astype(jnp.bfloat16)
    decoded = decode_boxes(anchors, low)
    assert decoded.dtype == jnp.float32
    # Sizes too are computed in float32, not in the precision of the deltas.
    np.testing.assert_array_equal(decoded, decode_boxes(anchors, low.astype(jnp.float32)))
