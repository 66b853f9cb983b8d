"""VOC's AP against the reference's figures, against a plain loop, and by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from rpn_jax.errors import UserError
from rpn_jax.evaluation.voc import voc_average_precision
from rpn_jax.inference.results import PictureDetections
from rpn_jax.inference.results_file import read_detections
from tests.evaluation.cases import AP_CASE, MadeDataset, box, dataset, dataset_of, detections_of

METHODS = ("11points", "area")


def test_the_references_figures_lie_between_the_orders_of_equal_scores() -> None:
    """A tenth of the detections has score 1, and the reference sorts them in no fixed order.

    Its figures must lie between those of the worst and of the best order. The class WBC has 12
    right and 31 wrong detections of score 1, so that range is wide. But its levels of 11points from
    0.2 on do not depend on the order. They leave 2/5 + 7/23 for the first two levels, which are
    precisions among the first 43 detections. No other rule for crowds and difficult boxes leaves
    a sum of two such fractions.
    """
    coco = json.loads((AP_CASE / "annotations.json").read_text())
    for annotation in coco["annotations"]:
        annotation["ignore"] = annotation["difficult"]
    truth = dataset_of(coco)
    expected = json.loads((AP_CASE / "expected.json").read_text())
    detections = read_detections(AP_CASE / "detections.json", truth.category_ids)
    figures = voc_average_precision(truth, detections, inclusive=False)
    assert len(figures) == 2 * (1 + 3)
    for label, name in enumerate(truth.class_names):
        ranges = [
            loop_ap(truth, detections, label, pixel=0, right_first=right_first)
            for right_first in (False, True)
        ]
        as_read = loop_ap(truth, detections, label, pixel=0)
        for method in METHODS:
            figure = f"voc_AP50_{method}"
            worst, best = (each[method] for each in ranges)
            assert worst < expected[f"{figure}/by_class"][name] < best
            assert figures[f"{figure}/{name}"] == pytest.approx(as_read[method], abs=1e-9)
    wbc = truth.class_names.index("WBC")
    levels = loop_levels(*loop_curve(truth, detections, wbc, pixel=0))
    left = 11 * expected["voc_AP50_11points/by_class"]["WBC"] - sum(levels[2:])
    assert left == pytest.approx(2 / 5 + 7 / 23, abs=1e-6)


def loop_ap(
    truth: MadeDataset,
    detections: list[PictureDetections],
    label: int,
    pixel: int,
    right_first: bool | None = None,
) -> dict[str, float]:
    """Return both APs of a class with plain loops, as VOCdevkit describes them.

    Args:
      truth: ground truth.
      detections: at most one entry for each picture.
      label: class.
      pixel: added to all widths and heights.
      right_first: whether right detections come before wrong ones of the same score. None keeps
        their order.
    """
    recall, precision = loop_curve(truth, detections, label, pixel, right_first)
    area, before = 0.0, 0.0
    for index, step in enumerate(recall):
        if step > before:
            area += (step - before) * max(precision[index:])
        before = step
    return {"11points": sum(loop_levels(recall, precision)) / 11, "area": area}


def loop_levels(recall: list[float], precision: list[float]) -> list[float]:
    """Return the best precision at each of the eleven recall levels or a higher recall."""
    curve = list(zip(recall, precision, strict=True))
    levels = np.arange(0, 1.001, 0.1)
    return [max([p for r, p in curve if r >= level], default=0) for level in levels]


def loop_curve(
    truth: MadeDataset,
    detections: list[PictureDetections],
    label: int,
    pixel: int,
    right_first: bool | None = None,
) -> tuple[list[float], list[float]]:
    """Return recall and precision after each detection."""
    pictures = {picture.image_id: picture.objects for picture in truth.pictures}
    total = sum(
        int(((objects.labels == label) & ~objects.is_difficult).sum())
        for objects in pictures.values()
    )
    rows = sorted(
        (
            (-score, each.image_id, box.tolist())
            for each in detections
            for box, score, of_class in zip(
                each.boxes_xyxy, each.scores.tolist(), each.labels, strict=True
            )
            if of_class == label
        ),
        key=lambda row: row[0],
    )
    taken: set[tuple[int, int]] = set()
    outcomes = []
    for score, image_id, found in rows:
        objects = pictures[image_id]
        best, best_iou = -1, 0.0
        for index, (x, y, w, h) in enumerate(objects.boxes_xywh.tolist()):
            if objects.labels[index] == label:
                iou = loop_iou([x, y, x + w, y + h], found, pixel)
                if iou > best_iou:
                    best, best_iou = index, iou
        if best_iou < 0.5:
            outcomes.append((score, 0, 1))
        elif objects.is_difficult[best]:
            outcomes.append((score, 0, 0))
        else:
            is_free = (image_id, best) not in taken
            outcomes.append((score, int(is_free), int(not is_free)))
            taken.add((image_id, best))
    if right_first is not None:
        outcomes.sort(key=lambda row: (row[0], row[2] if right_first else row[1]))
    true, false, recall, precision = 0, 0, [], []
    for _, is_true, is_false in outcomes:
        true, false = true + is_true, false + is_false
        recall.append(true / total)
        precision.append(true / max(true + false, 1))
    return recall, precision


def loop_iou(box: list[float], other: list[float], pixel: int) -> float:
    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(x2 - x1 + pixel, 0) * max(y2 - y1 + pixel, 0)

    low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
    overlap = area(*low, *high)
    return overlap / (area(*box) + area(*other) - overlap)


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_all_figures_equal_a_plain_loop(seed: int, inclusive: bool) -> None:
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for image_id in (1, 2):
        corners = rng.integers(0, 60, (9, 2))
        sides = rng.integers(3, 40, (9, 2))
        labels = rng.integers(0, 2, 9)
        for corner, side, label in zip(corners, sides, labels, strict=True):
            annotations.append(
                {
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [*corner.tolist(), *side.tolist()],
                    "area": float(side.prod()),
                    "ignore": rng.random() < 0.3,
                }
            )
        boxes = np.concatenate([corners, corners + sides], axis=1).repeat(3, axis=0)
        boxes = boxes + rng.integers(-3, 4, boxes.shape)
        scores = rng.permutation(len(boxes)) + image_id / 4
        detections.append(detections_of(image_id, boxes, scores, labels.repeat(3)))
    truth = dataset(*annotations, classes=3)
    figures = voc_average_precision(truth, detections, inclusive=inclusive)
    for label in range(2):
        expected = loop_ap(truth, detections, label, pixel=int(inclusive))
        for method in METHODS:
            assert 0 < expected[method] < 1
            assert figures[f"voc_AP50_{method}/class {label}"] == pytest.approx(expected[method])
    for method in METHODS:
        name = f"voc_AP50_{method}"
        assert math.isnan(figures[f"{name}/class 2"])
        both = [figures[f"{name}/class {label}"] for label in range(2)]
        assert figures[name] == pytest.approx(np.mean(both))


def test_recall_3_of_10_misses_the_level_of_0_3() -> None:
    """The level is 0.30000000000000004 in the reference. Recall 0.3 counts for 0, 0.1 and 0.2."""
    truth = dataset(*(box(1, 100 * number) for number in range(10)))
    boxes = [[100 * number, 0, 100 * number + 50, 50] for number in range(3)]
    figures = voc_average_precision(
        truth, [detections_of(1, boxes, [0.9, 0.8, 0.7], [0] * 3)], inclusive=False
    )
    assert figures["voc_AP50_11points"] == pytest.approx(3 / 11)
    assert figures["voc_AP50_area"] == pytest.approx(0.3)


def test_a_detection_looks_only_at_the_box_that_it_overlaps_most() -> None:
    """The second detection overlaps both boxes. Its best one is taken, so it is wrong."""
    truth = dataset(box(1, 0), box(1, 10))
    boxes = [[0, 0, 50, 50], [4, 0, 54, 50]]
    figures = voc_average_precision(
        truth, [detections_of(1, boxes, [0.9, 0.8], [0, 0])], inclusive=False
    )
    assert figures["voc_AP50_area"] == pytest.approx(0.5)


def test_difficult_boxes_count_neither_way() -> None:
    truth = dataset(box(1, 0, ignore=True), box(1, 200))
    boxes = [[0, 0, 50, 50], [0, 0, 50, 50], [200, 0, 250, 50]]
    figures = voc_average_precision(
        truth, [detections_of(1, boxes, [0.9, 0.8, 0.7], [0] * 3)], inclusive=False
    )
    assert figures["voc_AP50_area"] == figures["voc_AP50_11points"] == pytest.approx(1)


def test_inclusive_pixels_change_the_iou_of_small_boxes() -> None:
    """A third of a 3x3 box without the last row and column, half of a 4x4 one with them."""
    truth = dataset({"image_id": 1, "bbox": [0, 0, 3, 3], "area": 9})
    found = [detections_of(1, [[0, 0, 3, 1]], [1], [0])]
    assert voc_average_precision(truth, found, inclusive=False)["voc_AP50_area"] == 0
    assert voc_average_precision(truth, found, inclusive=True)["voc_AP50_area"] == 1


def test_no_detection_at_all_is_0() -> None:
    for found in ([], [detections_of(1, [], [], [])]):
        figures = voc_average_precision(dataset(box(1, 0)), found, inclusive=True)
        assert set(figures.values()) == {0.0}


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        (dataset(), [], "ground truth: has no box"),
        (dataset(box(1, 0, ignore=True)), [], "only difficult ones"),
        (dataset(box(1, 0)), [detections_of(7, [], [], [])], "image 7"),
        (dataset(box(1, 0)), [detections_of(2, [[0, 0, 1, 1]], [1], [5])], "label 5"),
    ],
)
def test_input_without_an_ap_is_refused(
    truth: MadeDataset, found: list[PictureDetections], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        voc_average_precision(truth, found, inclusive=False)
    assert "\n" not in str(error.value)
