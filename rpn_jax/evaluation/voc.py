"""Compute the average precision of Pascal VOC.

Each detection is compared with the box of its class that it overlaps most. It is right if their IoU
is at least 0.5 and no better detection has taken the box. Otherwise it is wrong. If the box is
difficult, the detection is neither (Everingham et al. 2010). The rule is that of the reference's
VOCMetric. Crowds count like other boxes, because VOC has none.

Two methods summarise the precision-recall curve of a class:

``11points``
    Mean over the recall levels 0, 0.1 .. 1 of the best precision at that recall or a higher one, as
    in VOC 2007.
``area``
    Area under the curve, with the best precision at each recall or a higher one, as since VOC 2010.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.data.dataset import Dataset, Objects, concatenate_objects
from rpn_jax.errors import UserError
from rpn_jax.evaluation.checks import check_entries, check_labels
from rpn_jax.evaluation.recall import pairwise_iou
from rpn_jax.inference.results import PictureDetections, best_first

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Int64

MIN_IOU = 0.5
RECALL_LEVELS = np.arange(0, 1 + 1e-3, 0.1)
"""Levels of 11points. As in the reference, some are a rounding error above the tenth."""


def voc_average_precision(
    dataset: Dataset, detections: Sequence[PictureDetections], *, inclusive: bool
) -> dict[str, float]:
    """Return VOC's AP of each class and their mean (mAP), by both methods.

    Args:
      dataset: pictures with their ground truth. The pixels are not read.
      detections: at most one entry for each picture. A picture without an entry counts as one
        without detections.
      inclusive: add one pixel to every width and height, as VOC and the reference do, because VOC
        counts the last row and column as part of a box.

    Returns:
      voc_AP50_11points and voc_AP50_area, the means over the classes that have a box to find, and
      voc_AP50_11points/CLASS and voc_AP50_area/CLASS. The AP of a class without one is NaN.
      Detections with equal scores keep their order. The reference sorts them in no fixed order.

    Raises:
      UserError: there is no box to find, there are detections for an unknown picture, or a label
        is not a class of the dataset.
    """
    objects = concatenate_objects([picture.objects for picture in dataset.pictures])
    to_find = objects.labels[~objects.is_difficult]
    totals = np.bincount(to_find, minlength=len(dataset.class_names))
    if not totals.any():
        raise UserError(
            "ground truth: has no box, or only difficult ones, so VOC's AP is undefined"
        )
    check_entries(dataset.pictures, detections, "detections")
    check_labels(detections, dataset.class_names)
    curves = [*_curves(dataset, detections, totals, pixel=float(inclusive))]
    figures = {}
    for method, average in (("11points", _eleven_points), ("area", _area)):
        by_class = {
            name: average(*curve) if total else math.nan
            for name, curve, total in zip(dataset.class_names, curves, totals, strict=True)
        }
        figures[f"voc_AP50_{method}"] = float(np.nanmean([*by_class.values()]))
        figures |= {f"voc_AP50_{method}/{name}": value for name, value in by_class.items()}
    return figures


def _curves(
    dataset: Dataset,
    detections: Sequence[PictureDetections],
    totals: Int64[np.ndarray, " C"],
    pixel: float,
) -> Iterator[tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]]:
    """Yield recall and precision of each class, by falling score."""
    truth = {picture.image_id: picture.objects for picture in dataset.pictures}
    outcomes = [_outcomes(found, truth[found.image_id], pixel) for found in detections]
    is_true = np.concatenate([np.zeros(0, bool), *(true for true, _ in outcomes)])
    is_false = np.concatenate([np.zeros(0, bool), *(false for _, false in outcomes)])
    labels = np.concatenate([np.zeros(0, np.int32), *(found.labels for found in detections)])
    scores = np.concatenate([np.zeros(0, np.float32), *(found.scores for found in detections)])
    for label, total in enumerate(totals):
        rows = np.flatnonzero(labels == label)
        rows = rows[best_first(scores[rows])]
        true, false = is_true[rows].cumsum(), is_false[rows].cumsum()
        yield true / max(total, 1), true / np.maximum(true + false, 1)


def _outcomes(
    found: PictureDetections, truth: Objects, pixel: float
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Return whether each detection of a picture is right, and whether it is wrong."""
    is_true = np.zeros(len(found.scores), bool)
    if not len(truth.labels):
        return is_true, ~is_true
    order = best_first(found.scores)
    low, sides = truth.boxes_xywh[:, :2], truth.boxes_xywh[:, 2:]
    ious = pairwise_iou(np.concatenate([low, low + sides], axis=1), found.boxes_xyxy, pixel)
    ious[truth.labels[:, None] != found.labels] = -1
    nearest = ious.argmax(axis=0)
    overlaps = ious.max(axis=0) >= MIN_IOU
    is_to_find = ~truth.is_difficult[nearest]
    by_score = order[(overlaps & is_to_find)[order]]
    _, first = np.unique(nearest[by_score], return_index=True)
    is_true[by_score[first]] = True
    return is_true, ~is_true & ~(overlaps & ~is_to_find)


def _eleven_points(
    recall: Float64[np.ndarray, " n"], precision: Float64[np.ndarray, " n"]
) -> float:
    best = [precision[recall >= level].max(initial=0) for level in RECALL_LEVELS]
    return float(np.mean(best))


def _area(recall: Float64[np.ndarray, " n"], precision: Float64[np.ndarray, " n"]) -> float:
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0) * envelope))
