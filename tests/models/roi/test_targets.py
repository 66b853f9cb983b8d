"""Targets of the second stage: against a plain loop, with padding and without objects."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from rpn_jax.config import Config, ModelConfig, RoIHeadConfig, RoILossConfig
from rpn_jax.models.roi.targets import RoITargets, roi_targets
from tests.oracles import detection
from tests.oracles.boxes import grid_boxes, random_boxes

CLASSES = 5
ALL = RoILossConfig(samples_per_image=0)
CONFIG = Config(model=ModelConfig(roi=RoIHeadConfig(num_classes=CLASSES)), roi_loss=ALL)
STDS = np.array([0.1, 0.1, 0.2, 0.2])
PROPOSALS = 24
BOXES = 4


def with_samples(samples: int, fraction: float = 0.25) -> Config:
    settings = RoILossConfig(samples_per_image=samples, positive_fraction=fraction)
    return replace(CONFIG, roi_loss=settings)


def random_inputs(seed: int, counts: tuple[int, ...] = (4, 1, 0)) -> tuple[np.ndarray, ...]:
    """Return proposals, mask, boxes, labels and mask; some proposals lie close to the boxes."""
    rng = np.random.default_rng(seed)
    batch = len(counts)
    boxes = random_boxes(rng, batch, BOXES)
    near = boxes[:, np.arange(12) % BOXES] + rng.normal(size=(batch, 12, 4)).astype(np.float32) * 3
    near[..., 2:] = np.maximum(near[..., 2:], near[..., :2] + 1)
    far = random_boxes(rng, batch, PROPOSALS - 12)
    proposals = np.concatenate([near, far], axis=1)[:, rng.permutation(PROPOSALS)]
    mask = np.arange(BOXES) < np.array(counts)[:, None]
    labels = np.where(mask, rng.integers(0, CLASSES, (batch, BOXES)), 0).astype(np.int32)
    return proposals, rng.random((batch, PROPOSALS)) < 0.9, boxes, labels, mask


def looped_targets(proposals, proposal_mask, boxes, labels, box_mask) -> list[tuple]:
    """Return (box, label, deltas) of every box of one picture: positives, then background."""
    matched = detection.assign(proposals, proposal_mask, boxes, box_mask, 0.5, 0.5, 2.0)
    rows = [(boxes[k], k + 1) for k in range(len(boxes)) if box_mask[k]]
    rows += [(proposals[i], matched[i]) for i in range(len(proposals)) if matched[i] >= 0]
    found = []
    for box, match in [row for row in rows if row[1] > 0] + [row for row in rows if row[1] == 0]:
        deltas = np.array(detection.encode(box, boxes[match - 1])) / STDS if match else np.zeros(4)
        found.append((box, labels[match - 1] if match else CLASSES, deltas))
    return found


def compute(config: Config, inputs: tuple[np.ndarray, ...], seed: int = 0) -> RoITargets:
    return jax.device_get(jax.jit(partial(roi_targets, config))(*inputs, jax.random.key(seed)))


@pytest.mark.parametrize("seed", range(4))
def test_all_boxes_against_the_loop(seed: int) -> None:
    inputs = random_inputs(seed)
    targets = compute(CONFIG, inputs)
    assert targets.boxes_xyxy.shape == (3, BOXES + PROPOSALS, 4)
    for i in range(3):
        expected = looped_targets(*(array[i] for array in inputs))
        count = len(expected)
        assert targets.sampled[i].sum() == count
        assert targets.sampled[i, :count].all()
        np.testing.assert_array_equal(targets.boxes_xyxy[i, :count], [row[0] for row in expected])
        np.testing.assert_array_equal(targets.labels[i, :count], [row[1] for row in expected])
        np.testing.assert_allclose(
            targets.deltas[i, :count], [row[2] for row in expected], rtol=1e-4, atol=1e-4
        )
        assert not targets.boxes_xyxy[i, count:].any()
        assert (targets.labels[i, count:] == CLASSES).all()
        assert not targets.deltas[i, count:].any()


def test_a_proposal_at_the_threshold_is_positive() -> None:
    box = np.array([[[0, 0, 10, 10]]], np.float32)
    proposals = np.array([[[0, 0, 10, 20], [0, 0, 10, 20.001], [0, 0, 10, 19.999]]], np.float32)
    labels, mask = np.full((1, 1), 3, np.int32), np.ones((1, 1), bool)
    targets = compute(CONFIG, (proposals, np.ones((1, 3), bool), box, labels, mask))
    assert targets.labels.tolist() == [[3, 3, 3, CLASSES]]
    np.testing.assert_array_equal(targets.boxes_xyxy[0, 3], proposals[0, 1])


def test_objects_train_without_any_proposal() -> None:
    proposals, proposal_mask, boxes, labels, mask = random_inputs(0)
    targets = compute(CONFIG, (proposals, proposal_mask & False, boxes, labels, mask))
    assert targets.sampled.sum(axis=1).tolist() == [4, 1, 0]
    np.testing.assert_array_equal(targets.boxes_xyxy[0, :BOXES], boxes[0])
    np.testing.assert_array_equal(targets.labels[0, :BOXES], labels[0])
    assert not targets.deltas.any()


def test_batches_without_room_for_objects_are_background() -> None:
    proposals, proposal_mask, *objects = random_inputs(0)
    none = compute(CONFIG, (proposals, proposal_mask, *(array[:, :0] for array in objects)))
    masked = compute(CONFIG, (proposals, proposal_mask, *objects[:2], objects[2] & False))
    count = min(len(none.sampled[0]), len(masked.sampled[0]))
    for found, expected in zip(none, masked, strict=True):
        np.testing.assert_array_equal(found[:, :count], expected[:, :count])
    assert (none.sampled.sum(axis=1) == proposal_mask.sum(axis=1)).all()


@pytest.mark.parametrize(("samples", "fraction"), [(8, 0.25), (8, 0.5), (16, 1.0), (500, 0.25)])
def test_sampling_takes_positives_up_to_the_fraction(samples: int, fraction: float) -> None:
    inputs = random_inputs(5, counts=(4, 4))
    all_targets = compute(CONFIG, inputs)
    targets = compute(with_samples(samples, fraction), inputs)
    assert targets.boxes_xyxy.shape[1] == min(samples, BOXES + PROPOSALS)
    for i in range(2):
        is_positive = (all_targets.labels[i] < CLASSES) & all_targets.sampled[i]
        most = min(int(samples * fraction), is_positive.sum())
        negatives = min(samples - most, (all_targets.sampled[i] & ~is_positive).sum())
        taken = (targets.labels[i] < CLASSES) & targets.sampled[i]
        assert (taken.sum(), targets.sampled[i].sum()) == (most, most + negatives)
        assert taken[:most].all()
        candidates = {tuple(box) for box in all_targets.boxes_xyxy[i][all_targets.sampled[i]]}
        chosen = [tuple(box) for box in targets.boxes_xyxy[i][targets.sampled[i]]]
        assert set(chosen) <= candidates
        assert len(set(chosen)) == len(chosen)


def test_each_box_is_sampled_equally_often() -> None:
    inputs = random_inputs(6, counts=(4,))
    config = with_samples(8)
    all_targets = compute(CONFIG, inputs)
    one = jax.jit(partial(roi_targets, config))
    keys = jax.random.split(jax.random.key(1), 400)
    boxes = np.concatenate([np.asarray(one(*inputs, key).boxes_xyxy[0]) for key in keys])
    for is_positive in (True, False):
        of_kind = ((all_targets.labels[0] < CLASSES) == is_positive) & all_targets.sampled[0]
        rows = all_targets.boxes_xyxy[0][of_kind]
        counts = np.array([(boxes == row).all(axis=1).sum() for row in rows])
        expected = 400 * (2 if is_positive else 6) / len(rows)
        deviation = 5 * np.sqrt(expected)
        assert np.all(abs(counts - expected) < deviation), (counts, expected)


def test_the_pictures_of_a_batch_are_sampled_independently() -> None:
    inputs = tuple(np.repeat(array, 2, axis=0) for array in random_inputs(7, counts=(4,)))
    targets = compute(with_samples(8), inputs)
    assert not np.array_equal(targets.boxes_xyxy[0], targets.boxes_xyxy[1])
    again = compute(with_samples(8), inputs)
    np.testing.assert_array_equal(targets.boxes_xyxy, again.boxes_xyxy)
    other = compute(with_samples(8), inputs, seed=1)
    assert not np.array_equal(targets.boxes_xyxy, other.boxes_xyxy)


def test_masked_and_flat_boxes_change_nothing() -> None:
    proposals, proposal_mask, boxes, labels, mask = random_inputs(8, counts=(2,))
    expected = compute(CONFIG, (proposals, proposal_mask, boxes, labels, mask))
    junk = boxes.copy()
    junk[0, 3] = proposals[0, 0]
    flat = boxes.copy()
    flat[0, 2] = [5, 5, 30, 5]
    shown = mask.copy()
    shown[0, 2] = True
    junk_proposals = np.where(proposal_mask[..., None], proposals, boxes[:, :1])
    for other in (
        (junk_proposals, proposal_mask, junk, labels, mask),
        (proposals, proposal_mask, flat, labels, shown),
    ):
        for name, array in zip(RoITargets._fields, compute(CONFIG, other), strict=True):
            np.testing.assert_array_equal(array, getattr(expected, name), err_msg=name)


def test_boxes_on_a_grid_with_many_ties_against_the_loop() -> None:
    rng = np.random.default_rng(0)
    proposals, boxes = grid_boxes(rng, 1, 40), grid_boxes(rng, 1, 6)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)
    inputs = (proposals, np.ones((1, 40), bool), boxes, np.arange(6, dtype=np.int32)[None] % 5)
    targets = compute(CONFIG, (*inputs, area > 0))
    expected = looped_targets(*(array[0] for array in inputs), area[0] > 0)
    np.testing.assert_array_equal(targets.labels[0, : len(expected)], [row[1] for row in expected])
