"""Compute the average recall of proposals, by two protocols.

Average recall (AR) is the share of ground-truth boxes that are found, averaged over the IoU
thresholds 0.50, 0.55 .. 0.95 (Hosang et al. 2015). ``@k`` counts the k best proposals of each
picture.

``proposal``
    COCOeval of pycocotools without categories. Proposals are matched in the order of their scores.
    Each takes the free box with the best IoU above the threshold. Figures are named ``AR...``.
``proposal_fast``
    The reference's own measure. It takes the largest entry of a picture's IoU matrix, removes its
    row and column, and repeats this until no box is left. Figures are named ``fast_AR...``. The
    AR1000 that the reference publishes are of this kind.

Both leave out crowd boxes. A figure without any box to find is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.data.dataset import Objects, Picture
from rpn_jax.evaluation.checks import check_entries, check_truth
from rpn_jax.evaluation.matching import AREA_RANGES, IOU_THRESHOLDS, match_detections
from rpn_jax.inference.results import PictureDetections, PictureProposals, best_first

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

PROPOSAL_COUNTS = (100, 300, 1000)
MIN_UNION = 1e-6
"""Square pixels; the reference's guard against a division by zero."""
RECALL_FIGURES = tuple(f"AR@{count}" for count in PROPOSAL_COUNTS)
"""Figures of the protocol ``proposal`` over boxes of all sizes."""
BEST_BY = "AR@1000"
"""Figure that selects the best checkpoint, the larger the better."""
FIRST_STAGE_PREFIX = "rpn_"
"""Marks the recall of a detector's proposals. The detections have figures of the same names."""


def evaluate(
    pictures: Sequence[Picture], proposals: Sequence[PictureProposals]
) -> dict[str, float]:
    """Return the figures of both protocols.

    Args:
      pictures: pictures with their ground truth.
      proposals: at most one entry for each picture. A picture without an entry counts as one
        without proposals.

    Raises:
      UserError: there is no box to find, or there are proposals for an unknown picture.
    """
    return coco_recall(pictures, proposals) | fast_recall(pictures, proposals)


def coco_recall(
    pictures: Sequence[Picture], proposals: Sequence[PictureProposals]
) -> dict[str, float]:
    """Return AR@100, AR@300, AR@1000 and AR_{small,medium,large}@1000 of protocol ``proposal``.

    Arguments and errors are those of `evaluate`. The area in the ground truth decides the size
    class of a box. In COCO it is the area of the outline.
    """
    _check(pictures, proposals)
    matches = match_detections(
        [_with_one_class(picture) for picture in pictures],
        [_of_one_class(found) for found in proposals],
        PROPOSAL_COUNTS[-1],
    )
    ranks = matches.ranks[matches.overlapping]
    totals = matches.is_counted.sum(axis=1)

    def recall(area: str, count: int) -> float:
        size = list(AREA_RANGES).index(area)
        found = matches.is_true[size][:, ranks < count].sum(axis=1)
        return float(np.mean(found / totals[size])) if totals[size] else math.nan

    most = PROPOSAL_COUNTS[-1]
    return {f"AR@{count}": recall("all", count) for count in PROPOSAL_COUNTS} | {
        f"AR_{area}@{most}": recall(area, most) for area in AREA_RANGES if area != "all"
    }


def fast_recall(
    pictures: Sequence[Picture], proposals: Sequence[PictureProposals]
) -> dict[str, float]:
    """Return fast_AR@100, fast_AR@300 and fast_AR@1000 of protocol ``proposal_fast``.

    Arguments and errors are those of `evaluate`. Difficult objects are left out as well.
    """
    _check(pictures, proposals)
    truth = {picture.image_id: _boxes_to_find(picture.objects) for picture in pictures}
    total = sum(map(len, truth.values()))
    found: dict[int, list[Float[ndarray, " G"]]] = {count: [] for count in PROPOSAL_COUNTS}
    for entry in proposals:
        best = best_first(entry.scores)[: PROPOSAL_COUNTS[-1]]
        ious = pairwise_iou(truth[entry.image_id], entry.boxes_xyxy[best])
        for count in PROPOSAL_COUNTS:
            found[count].append(greedy_match(ious[:, :count]))
    return {f"fast_AR@{count}": _mean_recall(found[count], total) for count in PROPOSAL_COUNTS}


def with_first_stage(figures: dict[str, float], recall: dict[str, float]) -> dict[str, float]:
    """Return a detector's figures with the recall of its proposals, named ``rpn_AR@100`` etc."""
    return figures | {f"{FIRST_STAGE_PREFIX}{name}": value for name, value in recall.items()}


def first_stage_figures(figures: dict[str, float]) -> dict[str, float]:
    """Return the recall of the proposals from the result of `with_first_stage`."""
    return {
        name.removeprefix(FIRST_STAGE_PREFIX): value
        for name, value in figures.items()
        if name.startswith(FIRST_STAGE_PREFIX)
    }


def pairwise_iou(
    boxes_xyxy: Float[ndarray, "G 4"], others_xyxy: Float[ndarray, "n 4"], pixel: float = 0
) -> Float[ndarray, "G n"]:
    """Return the float32 IoU of all pairs, in the reference's order of operations.

    Args:
      boxes_xyxy: pixels.
      others_xyxy: pixels.
      pixel: added to every width and height. 1 if the corners are pixels that belong to the box.
    """
    boxes, others = (boxes.astype(np.float32) for boxes in (boxes_xyxy, others_xyxy))
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    overlap = np.maximum(high - low + np.float32(pixel), 0).prod(axis=2)
    areas = [
        (array[:, 2:] - array[:, :2] + np.float32(pixel)).prod(axis=1) for array in (boxes, others)
    ]
    union = areas[0][:, None] + areas[1][None, :] - overlap
    return overlap / np.maximum(union, MIN_UNION)


def greedy_match(ious: Float[ndarray, "G n"]) -> Float[ndarray, " G"]:
    """Return the IoU with which each box is found, in the order in which the boxes are found.

    Each round takes the largest entry of the matrix (the first of equal ones) and removes its row
    and column. Boxes without a proposal left get -1.
    """
    left = ious.copy()
    found = np.full(len(ious), -1, np.float32)
    for round_ in range(min(ious.shape)):
        row, column = divmod(int(left.argmax()), left.shape[1])
        found[round_] = left[row, column]
        left[row] = -1
        left[:, column] = -1
    return found


def _check(pictures: Sequence[Picture], proposals: Sequence[PictureProposals]) -> None:
    check_truth(pictures, "recall")
    check_entries(pictures, proposals, "proposals")


def _with_one_class(picture: Picture) -> Picture:
    labels = np.zeros_like(picture.objects.labels)
    return replace(picture, objects=replace(picture.objects, labels=labels))


def _of_one_class(found: PictureProposals) -> PictureDetections:
    labels = np.zeros(len(found.scores), np.int32)
    return PictureDetections(found.image_id, found.boxes_xyxy, found.scores, labels)


def _boxes_to_find(objects: Objects) -> Float[ndarray, "G 4"]:
    boxes_xywh = objects.boxes_xywh[~(objects.is_crowd | objects.is_difficult)]
    corners = (boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:])
    return np.concatenate(corners, axis=1).astype(np.float32)


def _mean_recall(found: Sequence[Float[ndarray, " G"]], total: int) -> float:
    """Return the recall, mean over the thresholds, from the IoU with which boxes are found."""
    if not total:
        return math.nan
    ious = np.concatenate([np.zeros(0, np.float32), *found])
    # Compare in float32, so that an IoU of exactly 0.7 reaches the threshold 0.7.
    reached = ious >= IOU_THRESHOLDS.astype(np.float32)[:, None]
    return float(np.mean(reached.sum(axis=1) / total))
