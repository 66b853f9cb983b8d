"""Compute the box average precision (AP) of COCO.

The figures are those of COCOeval of pycocotools with its default settings (Lin et al. 2014,
https://cocodataset.org/#detection-eval). AP is the mean over classes, over the IoU thresholds
0.50, 0.55 .. 0.95, and over 101 recall levels, of the best precision at that recall or a higher
one. AR is the recall, mean over classes and thresholds. Both leave out crowd boxes. A detection of
a crowd counts neither as right nor as wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.data.dataset import Dataset
from rpn_jax.evaluation.checks import check_entries, check_labels, check_truth
from rpn_jax.evaluation.federated import (
    MAX_DETECTIONS,
    frequency_groups,
    is_federated,
    verified_detections,
)
from rpn_jax.evaluation.matching import AREA_RANGES, IOU_THRESHOLDS, Matches, match_detections
from rpn_jax.inference.results import PictureDetections

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Int64

DETECTION_COUNTS = (1, 10, 100)
"""Numbers of detections of a picture and class at which AR is measured."""
RECALL_LEVELS = np.linspace(0, 1, 101)
BEST_BY = "AP"
"""Figure that selects the best checkpoint, the larger the better."""
CLASS_PREFIX = "AP/"
"""The AP of a class is named by this prefix and the name of the class."""


def evaluate_detections(
    dataset: Dataset, detections: Sequence[PictureDetections]
) -> dict[str, float]:
    """Return COCO's twelve figures and the AP of each class.

    Args:
      dataset: pictures with their ground truth. The pixels are not read.
      detections: at most one entry for each picture. A picture without an entry counts as one
        without detections.

    Returns:
      AP, AP50 and AP75 (at one IoU threshold), AP_{small,medium,large} (by the area in the ground
      truth), AR@1, AR@10, AR@100, AR_{small,medium,large}@100, and AP/CLASS for each class. A
      figure without any box to find is NaN. `class_figures` returns the last part alone.
      A federated dataset has LVIS's figures: AR@300 instead of the other AR, and
      AP_{rare,common,frequent}. See `rpn_jax.evaluation.federated`.

    Raises:
      UserError: there is no box to find, there are detections for an unknown picture, or a label
        is not a class of the dataset.
    """
    check_truth(dataset.pictures, "AP")
    check_entries(dataset.pictures, detections, "detections")
    check_labels(detections, dataset.class_names)
    counts: tuple[int, ...] = DETECTION_COUNTS
    groups: dict[str, Int64[np.ndarray, " k"]] = {}
    if is_federated(dataset.pictures):
        detections = verified_detections(dataset.pictures, detections)
        counts, groups = (MAX_DETECTIONS,), frequency_groups(dataset)
    matches = match_detections(dataset.pictures, detections, counts[-1])
    classes = len(dataset.class_names)
    precision = _class_precisions(matches, classes)
    recall = {count: _class_recalls(matches, classes, count) for count in counts}
    of_groups = {
        f"AP_{group}": _mean_of_classes(precision[labels, 0]) for group, labels in groups.items()
    }
    return (
        _overall(precision, recall)
        | of_groups
        | {
            f"{CLASS_PREFIX}{name}": float(row[0].mean())
            for name, row in zip(dataset.class_names, precision, strict=True)
        }
    )


def class_figures(figures: dict[str, float], prefix: str = CLASS_PREFIX) -> dict[str, float]:
    """Return the figure of each class, by its name, from the result of `evaluate_detections`.

    Args:
      figures: figures by name.
      prefix: what comes before the name of the class.
    """
    return {
        name.removeprefix(prefix): value
        for name, value in figures.items()
        if name.startswith(prefix)
    }


def _overall(
    precision: Float64[np.ndarray, "C A T"], recall: dict[int, Float64[np.ndarray, "C A T"]]
) -> dict[str, float]:
    at_50, at_75 = (int(np.argmin(abs(IOU_THRESHOLDS - iou))) for iou in (0.5, 0.75))
    sizes = list(enumerate(AREA_RANGES))[1:]
    most = max(recall)
    return (
        {
            "AP": _mean_of_classes(precision[:, 0]),
            "AP50": _mean_of_classes(precision[:, 0, at_50]),
            "AP75": _mean_of_classes(precision[:, 0, at_75]),
        }
        | {f"AP_{area}": _mean_of_classes(precision[:, size]) for size, area in sizes}
        | {f"AR@{count}": _mean_of_classes(recall[count][:, 0]) for count in recall}
        | {f"AR_{area}@{most}": _mean_of_classes(recall[most][:, size]) for size, area in sizes}
    )


def _mean_of_classes(values: Float64[np.ndarray, "C ..."]) -> float:
    """Return the mean over all classes that have a box to find."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _class_precisions(matches: Matches, classes: int) -> Float64[np.ndarray, "C A T"]:
    """Return the mean of the interpolated precision over the recall levels, for each class."""
    by_score = np.argsort(-matches.scores, kind="stable")
    by_score = by_score[np.argsort(matches.labels[by_score], kind="stable")]
    ends = np.cumsum(np.bincount(matches.labels, minlength=classes))
    rows_of_class = np.split(by_score, ends[:-1])
    is_true, is_false = _outcomes(matches)
    totals = _totals(matches, classes)
    return np.stack(
        [
            _mean_precision(is_true[..., rows], is_false[..., rows], totals[label])
            for label, rows in enumerate(rows_of_class)
        ]
    )


def _outcomes(
    matches: Matches,
) -> tuple[Bool[np.ndarray, "A T n"], Bool[np.ndarray, "A T n"]]:
    """Return whether each detection is right, and whether it is wrong.

    It is neither if its box does not count, or if it takes no box and its area is out of range.
    """
    shape = (len(AREA_RANGES), len(IOU_THRESHOLDS), len(matches.labels))
    is_true = np.zeros(shape, bool)
    is_true[..., matches.overlapping] = matches.is_true
    is_false = np.broadcast_to(matches.counts_unmatched[:, None], shape).copy()
    is_false[..., matches.overlapping] &= ~matches.is_matched
    return is_true, is_false


def _mean_precision(
    is_true: Bool[np.ndarray, "A T k"],
    is_false: Bool[np.ndarray, "A T k"],
    totals: Int64[np.ndarray, " A"],
) -> Float64[np.ndarray, "A T"]:
    """Return COCO's AP of one class, for each size and threshold.

    Args:
      is_true: whether each detection is right. They come by falling score.
      is_false: whether each detection is wrong.
      totals: number of boxes to find.
    """
    true, false = is_true.cumsum(axis=2), is_false.cumsum(axis=2)
    precision = true / (true + false + np.spacing(1))
    # The best precision at this recall or a higher one. It is 0 at levels that are not reached.
    precision = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
    precision = np.concatenate([precision, np.zeros((*precision.shape[:2], 1))], axis=2)
    mean = np.full(precision.shape[:2], np.nan)
    for size, threshold in np.ndindex(*mean.shape):
        if totals[size]:
            recall = true[size, threshold] / totals[size]
            reached = np.searchsorted(recall, RECALL_LEVELS, side="left")
            mean[size, threshold] = precision[size, threshold, reached].mean()
    return mean


def _class_recalls(matches: Matches, classes: int, count: int) -> Float64[np.ndarray, "C A T"]:
    """Return the recall of each class by the ``count`` best detections of each picture."""
    labels = matches.labels[matches.overlapping]
    is_best = matches.ranks[matches.overlapping] < count
    recalls = np.full((classes, len(AREA_RANGES), len(IOU_THRESHOLDS)), np.nan)
    for size, total in enumerate(_totals(matches, classes).T):
        has_boxes = total > 0
        for threshold in range(len(IOU_THRESHOLDS)):
            found = labels[matches.is_true[size, threshold] & is_best]
            found = np.bincount(found, minlength=classes)
            recalls[has_boxes, size, threshold] = (found / np.maximum(total, 1))[has_boxes]
    return recalls


def _totals(matches: Matches, classes: int) -> Int64[np.ndarray, "C A"]:
    """Return the number of boxes to find, by class and size."""
    counts = [
        np.bincount(matches.box_labels[is_counted], minlength=classes)
        for is_counted in matches.is_counted
    ]
    return np.stack(counts, axis=1)
