"""Detections: against a plain loop, with padding, ties, and nothing to detect."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.config import Config, DetectionConfig
from rpn_jax.models.roi.detections import detect
from rpn_jax.structures import Detections, RoIOutputs
from tests.oracles import detection
from tests.oracles.boxes import random_boxes

STDS = np.array([0.1, 0.1, 0.2, 0.2], np.float32)
SETTINGS = DetectionConfig(min_score=0.05, nms_iou=0.5, max_detections=15)
CONFIG = Config(roi_detections=SETTINGS)
SIZES = np.array([[90, 100], [100, 60]], np.int32)
FACTORS = np.array([[0.5, 0.75], [2.0, 1.0]], np.float32)
BATCH, BOXES, CLASSES = 2, 20, 3

Case = tuple[RoIOutputs, np.ndarray, np.ndarray]


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, BATCH, BOXES)
    mask = rng.random((BATCH, BOXES)) < 0.9
    logits = rng.normal(size=(BATCH, BOXES, CLASSES + 1)) * 2
    deltas = rng.normal(size=(BATCH, BOXES, CLASSES, 4))
    return RoIOutputs(jnp.float32(logits), jnp.float32(deltas)), boxes, mask


def looped(case: Case, picture: int, factors: np.ndarray | None) -> list[tuple]:
    """Return (score, box, label) of the detections of one picture, best first."""
    outputs, boxes, mask = case
    logits = np.float64(outputs.class_logits[picture])
    scores = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    found = []
    for label in range(CLASSES):
        deltas = np.asarray(outputs.deltas[picture, :, label]) * STDS
        decoded = np.array(
            [
                detection.decode(box, delta)
                for box, delta in zip(boxes[picture], deltas, strict=True)
            ]
        )
        height, width = SIZES[picture]
        decoded = decoded.clip(0, [width, height, width, height])
        if factors is not None:
            decoded = decoded / np.tile(factors[picture], 2)
        decoded = decoded.astype(np.float32)
        valid = mask[picture] & (scores[:, label] > 0.05)
        keep = detection.nms(decoded, scores[:, label], valid, 0.5)
        found += [(scores[i, label], decoded[i], label) for i in np.flatnonzero(keep)]
    return sorted(found, key=lambda row: -row[0])[: SETTINGS.max_detections]


def check(found: Detections, picture: int, expected: list[tuple]) -> None:
    count = len(expected)
    assert found.valid[picture].tolist() == [True] * count + [False] * (15 - count)
    np.testing.assert_allclose(found.scores[picture, :count], [r[0] for r in expected], rtol=1e-5)
    assert found.labels[picture, :count].tolist() == [row[2] for row in expected]
    np.testing.assert_allclose(
        found.boxes[picture, :count], [row[1] for row in expected], rtol=1e-4, atol=1e-3
    )
    for array in (found.boxes, found.scores, found.labels):
        assert not np.any(array[picture, count:])


@pytest.mark.parametrize("factors", [None, FACTORS], ids=["resized pixels", "original pixels"])
@pytest.mark.parametrize("seed", range(3))
def test_against_the_loop(seed: int, factors: np.ndarray | None) -> None:
    case = random_case(seed)
    found = jax.device_get(jax.jit(partial(detect, CONFIG))(*case, SIZES, factors))
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == ("f4", "f4", "i4")
    for picture in range(BATCH):
        check(found, picture, looped(case, picture, factors))


def test_nothing_above_the_lowest_score_gives_no_detection() -> None:
    outputs, boxes, mask = random_case(0)
    background = outputs.class_logits.at[..., -1].set(100.0)
    found = detect(CONFIG, RoIOutputs(background, outputs.deltas), boxes, mask, SIZES)
    assert not np.any(found.valid)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found))


def test_a_score_at_the_threshold_is_left_out() -> None:
    logits = jnp.zeros((1, 1, 2)).at[..., 0].set(0.0)
    outputs = RoIOutputs(logits, jnp.zeros((1, 1, 1, 4)))
    box, mask = np.array([[[0, 0, 10, 10]]], np.float32), np.ones((1, 1), bool)
    for min_score, count in ((0.5, 0), (0.4999, 1)):
        config = Config(roi_detections=DetectionConfig(min_score=min_score, max_detections=2))
        assert detect(config, outputs, box, mask, SIZES[:1]).valid.sum() == count


def test_masked_boxes_are_not_detected_and_suppress_nothing() -> None:
    outputs, boxes, mask = random_case(1)
    expected = detect(CONFIG, outputs, boxes, mask, SIZES)
    junk = np.where(mask[..., None], boxes, boxes[:, :1])
    best = jnp.where(mask[..., None], outputs.class_logits, 50.0)
    found = detect(CONFIG, RoIOutputs(best, outputs.deltas), junk, mask, SIZES)
    for array, same in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(array, same)


def test_boxes_without_area_are_kept_and_never_suppress() -> None:
    boxes = np.tile(np.array([5, 5, 5, 25], np.float32), (1, 3, 1))
    outputs = RoIOutputs(jnp.zeros((1, 3, 2)), jnp.zeros((1, 3, 1, 4)))
    found = detect(CONFIG, outputs, boxes, np.ones((1, 3), bool), SIZES[:1])
    assert found.valid.sum() == 3


def test_equal_scores_come_in_the_order_of_boxes_then_classes() -> None:
    boxes = np.array([[[0, 0, 10, 10], [40, 40, 60, 60]]], np.float32)
    logits = jnp.zeros((1, 2, CLASSES + 1))
    outputs = RoIOutputs(logits, jnp.zeros((1, 2, CLASSES, 4)))
    found = detect(CONFIG, outputs, boxes, np.ones((1, 2), bool), SIZES[:1])
    assert found.labels[0, :6].tolist() == [0, 1, 2, 0, 1, 2]
    np.testing.assert_array_equal(found.boxes[0, :6], boxes[0, [0, 0, 0, 1, 1, 1]])


def test_no_boxes_at_all() -> None:
    outputs = RoIOutputs(jnp.zeros((2, 0, CLASSES + 1)), jnp.zeros((2, 0, CLASSES, 4)))
    found = detect(CONFIG, outputs, np.zeros((2, 0, 4), np.float32), np.ones((2, 0), bool), SIZES)
    assert found.boxes.shape == (2, 15, 4)
    assert not np.any(found.valid)
