"""The IoU and the matching of COCOeval, against pycocotools and a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask

from rpn_jax.evaluation.matching import AREA_RANGES, IOU_THRESHOLDS, coco_iou, match_detections
from rpn_jax.inference.results import PictureDetections, best_first
from tests.evaluation.cases import detections_of, picture_of


@pytest.mark.parametrize("seed", range(3))
def test_the_iou_has_the_bits_of_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, truth = (
        np.concatenate([rng.uniform(0, 50, (n, 2)), rng.uniform(0, 60, (n, 2))], axis=1)
        for n in (40, 15)
    )
    found[:3, 2:] = 0
    truth[:2, 2] = 0
    found[5:10] = truth[5:10]
    is_crowd = rng.random(len(truth)) < 0.3
    expected = mask.iou(found, truth, is_crowd.astype(np.uint8))
    np.testing.assert_array_equal(coco_iou(found, truth, is_crowd), expected)


def loop_match(
    found: PictureDetections, truth: list[dict], size: str, threshold: float
) -> list[tuple[bool, bool]]:
    """Return for each detection, best first, whether it takes a box, and one that counts."""
    low, high = AREA_RANGES[size]
    counts = [low <= each["area"] <= high and not each["iscrowd"] for each in truth]
    free = [True] * len(truth)
    outcomes = []
    for index in best_first(found.scores):
        x1, y1, x2, y2 = map(float, found.boxes_xyxy[index])
        best = None
        for counted in (True, False):
            for number, each in enumerate(truth):
                if counts[number] == counted and free[number]:
                    boxes = [[x1, y1, x2 - x1, y2 - y1]], [each["bbox"]]
                    iou = mask.iou(*map(np.array, boxes), [each["iscrowd"]])[0, 0]
                    if iou >= threshold and (best is None or iou >= best[0]):
                        best = iou, number
            if best is not None:
                break
        outcomes.append((best is not None, best is not None and counts[best[1]]))
        if best is not None and not truth[best[1]]["iscrowd"]:
            free[best[1]] = False
    return outcomes


@pytest.mark.parametrize("seed", range(4))
def test_matches_equal_a_plain_loop(seed: int) -> None:
    """Boxes that overlap each other, equal boxes, crowds, and boxes of all sizes."""
    rng = np.random.default_rng(seed)
    truth = [
        {"bbox": [x, y, side, side], "area": side**2, "iscrowd": int(rng.random() < 0.2)}
        for x, y, side in zip(
            rng.uniform(0, 40, 12), rng.uniform(0, 40, 12), rng.uniform(20, 110, 12), strict=True
        )
    ]
    truth[1] = dict(truth[0])
    corners = np.array([each["bbox"] for each in truth])
    corners[:, 2:] += corners[:, :2]
    boxes = corners.repeat(4, axis=0) + rng.normal(0, 5, (48, 4))
    boxes[0], boxes[1] = corners[0], corners[0]
    found = detections_of(1, boxes, rng.uniform(0, 1, 48), np.zeros(48))
    matches = match_detections([picture_of(1, truth)], [found], limit=100)
    assert 0 < len(matches.overlapping) <= 48
    for size, name in enumerate(AREA_RANGES):
        for number, threshold in enumerate(IOU_THRESHOLDS):
            outcomes = loop_match(found, truth, name, threshold)
            assert [taken for taken, _ in outcomes] == _of_all(
                matches.is_matched[size, number], matches.overlapping
            )
            assert [right for _, right in outcomes] == _of_all(
                matches.is_true[size, number], matches.overlapping
            )


def _of_all(values: np.ndarray, overlapping: np.ndarray) -> list[bool]:
    """Return the outcome of all 48 detections. Those that overlap no box match nothing."""
    everything = np.zeros(48, bool)
    everything[overlapping] = values
    return everything.tolist()
