"""Box AP against the reference's figures, against COCOeval itself, and by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from rpn_jax.errors import UserError
from rpn_jax.evaluation.average_precision import class_figures, evaluate_detections
from rpn_jax.inference.results import PictureDetections
from rpn_jax.inference.results_file import read_detections
from tests.evaluation.cases import (
    AP_CASE,
    MadeDataset,
    box,
    dataset,
    dataset_of,
    detections_of,
    run_cocoeval,
)

STATS = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR@1", "AR@10", "AR@100",
    "AR_small@100", "AR_medium@100", "AR_large@100",
)  # fmt: skip
"""Our names for the entries of COCOeval's ``stats``, in their order."""


def random_case(seed: int, near: int) -> tuple[dict[str, Any], list[PictureDetections]]:
    """Return pictures with crowds, all size classes, wrong classes, ties, and ids out of order.

    The category ids have gaps. One class has no box, another one has no detection.

    Args:
      seed: of the random numbers.
      near: number of detections near each box.
    """
    rng = np.random.default_rng(seed)
    categories = [3, 90, 1, 17, 44]
    annotations: list[dict] = []
    detections = []
    image_ids = [30, 7, 12, 5, 21, 9, 2, 14]
    for image_id in image_ids:
        count = int(rng.integers(0, 10))
        corners = rng.uniform(0, 300, (count, 2)).round(1)
        sides = rng.lognormal(4.2, 1, (count, 2)).clip(4, 300).round(1)
        corners[1::3], sides[1::3] = corners[::3][: count // 3 + (count % 3 > 1)], 60
        labels = rng.integers(0, 4, count)
        for corner, side, label in zip(corners, sides, labels, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": categories[label],
                    "bbox": [*corner.tolist(), *side.tolist()],
                    "area": float(side.prod() * rng.uniform(0.5, 1)),
                    "iscrowd": int(rng.random() < 0.2),
                }
            )
        boxes = np.concatenate([corners, corners + sides], axis=1).repeat(near, axis=0)
        boxes = boxes + rng.normal(0, 6, boxes.shape) * (rng.random((len(boxes), 1)) < 0.8)
        far = rng.uniform(0, 300, (120, 2))
        boxes = np.concatenate([boxes, np.hstack([far, far + rng.uniform(1, 200, far.shape)])])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        found = np.concatenate([labels.repeat(near), np.zeros(120, int)])
        found[rng.random(len(found)) < 0.1] = 4
        found[found == 3] = 2
        scores = rng.uniform(0, 1, len(boxes)).round(2)
        if image_id != 12:
            detections.append(detections_of(image_id, boxes, scores, found))
    return {
        "images": [{"id": image_id} for image_id in image_ids],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"class {number}"} for number in categories],
    }, detections


def results_of(detections: list[PictureDetections], ids: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": each.image_id,
            "category_id": ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for each in detections
        for (x1, y1, x2, y2), score, label in zip(
            each.boxes_xyxy.tolist(), each.scores.tolist(), each.labels.tolist(), strict=True
        )
    ]


def test_all_figures_equal_the_reference() -> None:
    truth = dataset_of(json.loads((AP_CASE / "annotations.json").read_text()))
    expected = json.loads((AP_CASE / "expected.json").read_text())
    detections = read_detections(AP_CASE / "detections.json", truth.category_ids)
    figures = evaluate_detections(truth, detections)
    assert figures == pytest.approx(
        {name: value for name, value in expected.items() if not name.startswith("voc_")}, abs=1e-9
    )


@pytest.mark.parametrize(("seed", "near"), [(0, 1), (1, 4), (2, 30)])
def test_all_figures_equal_cocoeval(
    seed: int, near: int, capsys: pytest.CaptureFixture[str]
) -> None:
    coco, detections = random_case(seed, near)
    truth = dataset_of(coco)
    figures = evaluate_detections(truth, detections)
    assert capsys.readouterr().out == ""
    assert all(0 < figures[name] < 1 for name in ("AP", "AP_small", "AR@1"))
    reference = run_cocoeval(
        coco, results_of(detections, truth.category_ids), use_classes=True, counts=[1, 10, 100]
    )
    assert {name: figures[name] for name in STATS} == pytest.approx(
        dict(zip(STATS, without_minus_1(reference.stats), strict=True)), abs=1e-12, nan_ok=True
    )
    precision = reference.eval["precision"][..., 0, -1]  # [threshold, recall, category], by id
    of_class = without_minus_1(precision.mean(axis=(0, 1)))
    by_id = dict(zip(sorted(truth.category_ids), of_class, strict=True))
    assert class_figures(figures) == pytest.approx(
        {f"class {category}": by_id[category] for category in truth.category_ids},
        abs=1e-12,
        nan_ok=True,
    )


def without_minus_1(values: np.ndarray) -> np.ndarray:
    """Return COCOeval's values with NaN in place of -1, where there is no box."""
    return np.where(values == -1, np.nan, values)


def test_ap_by_hand() -> None:
    """Two boxes. By score: a hit, two misses, a hit: precision 1 up to recall 0.5, then 0.5."""
    truth = dataset(box(1, 0), box(2, 100))
    found = [
        detections_of(1, [[0, 0, 50, 50], [300, 0, 350, 50]], [0.9, 0.8], [0, 0]),
        detections_of(2, [[300, 0, 350, 50], [100, 0, 150, 50]], [0.7, 0.6], [0, 0]),
    ]
    figures = evaluate_detections(truth, found)
    assert figures["AP"] == pytest.approx((51 * 1 + 50 * 0.5) / 101)
    assert figures["AP"] == figures["AP50"] == figures["AP/class 0"] == figures["AP_medium"]
    assert figures["AR@1"] == 0.5
    assert figures["AR@10"] == figures["AR_medium@100"] == 1
    assert math.isnan(figures["AP_small"])
    assert math.isnan(figures["AR_large@100"])


@pytest.mark.parametrize(
    ("height", "thresholds_met"), [(24.9, 0), (25, 1), (34.9, 4), (35, 5), (47.4, 9), (47.5, 10)]
)
def test_a_threshold_counts_from_itself_on(height: float, thresholds_met: int) -> None:
    figures = evaluate_detections(
        dataset(box(1, 0)), [detections_of(1, [[0, 0, 50, height]], [1], [0])]
    )
    assert figures["AP"] == pytest.approx(thresholds_met / 10)
    assert figures["AP50"] == pytest.approx(float(thresholds_met > 0))
    assert figures["AP75"] == pytest.approx(float(thresholds_met > 5))


@pytest.mark.parametrize(
    ("area", "sizes"),
    [
        (1023.9, {"small"}),
        (1024, {"small", "medium"}),
        (1024.1, {"medium"}),
        (9216, {"medium", "large"}),
        (9216.1, {"large"}),
    ],
)
def test_an_area_at_a_limit_belongs_to_both_sizes(area: float, sizes: set[str]) -> None:
    truth = dataset({"image_id": 1, "bbox": [0, 0, 50, 50], "area": area})
    figures = evaluate_detections(truth, [detections_of(1, [[0, 0, 50, 50]], [1], [0])])
    measured = {
        size for size in ("small", "medium", "large") if not math.isnan(figures[f"AP_{size}"])
    }
    assert measured == sizes


def test_a_second_detection_of_a_box_is_wrong() -> None:
    found = [detections_of(1, [[0, 0, 50, 50]] * 2 + [[100, 0, 150, 50]], [0.9, 0.8, 0.7], [0] * 3)]
    figures = evaluate_detections(dataset(box(1, 0), box(1, 100)), found)
    assert figures["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_detections_of_a_crowd_count_neither_way() -> None:
    found = [
        detections_of(1, [[0, 0, 50, 50]] * 3 + [[100, 0, 150, 50]], [0.9] * 3 + [0.5], [0] * 4)
    ]
    figures = evaluate_detections(dataset(box(1, 0, iscrowd=True), box(1, 100)), found)
    assert figures["AP"] == pytest.approx(1)


def test_the_right_box_with_the_wrong_class_is_wrong() -> None:
    truth = dataset(box(1, 0, label=1), box(2, 0, label=0), classes=3)
    figures = evaluate_detections(truth, [detections_of(1, [[0, 0, 50, 50]], [1], [0])])
    assert class_figures(figures)["class 0"] == class_figures(figures)["class 1"] == 0
    assert math.isnan(class_figures(figures)["class 2"])
    assert figures["AP"] == 0


def test_no_detection_at_all_is_0() -> None:
    for found in ([], [detections_of(1, [], [], [])]):
        figures = evaluate_detections(dataset(box(1, 0)), found)
        assert figures["AP"] == figures["AR@100"] == figures["AP/class 0"] == 0


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        (dataset(), [], "ground truth: has no box, or only crowds, so AP is undefined"),
        (dataset(box(1, 0, iscrowd=True)), [], "only crowds"),
        (dataset(box(1, 0)), [detections_of(7, [], [], [])], "detections of image 7: .* no image"),
        (dataset(box(1, 0)), [detections_of(1, [], [], [])] * 2, "image 1: there are two sets"),
        (
            dataset(box(1, 0), classes=3),
            [detections_of(1, [[0, 0, 1, 1]] * 2, [1, 1], [0, 3])],
            "image 1: label 3 is not a class. The dataset has 3 classes, with labels 0 to 2",
        ),
        (dataset(box(1, 0)), [detections_of(2, [[0, 0, 1, 1]], [1], [-1])], "image 2: label -1"),
    ],
)
def test_input_without_an_ap_is_refused(
    truth: MadeDataset, found: list[PictureDetections], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        evaluate_detections(truth, found)
    assert "\n" not in str(error.value)
