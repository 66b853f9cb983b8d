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

import contextlib
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rpn_jax.errors import UserError
from rpn_jax.inference.results import PictureProposals, best_first, to_xywh

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from numpy import ndarray

    from rpn_jax.data.dataset import Objects, Picture

PROPOSAL_COUNTS = (100, 300, 1000)
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = ("small", "medium", "large")
MIN_UNION = 1e-6
"""Square pixels; the reference's guard against a division by zero."""
RECALL_FIGURES = tuple(f"AR@{count}" for count in PROPOSAL_COUNTS)
"""Figures of the protocol ``proposal`` over boxes of all sizes."""
BEST_BY = "AR@1000"
"""Figure that selects the best checkpoint, the larger the better."""


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
    by_area = {count: _coco_recall_by_area(pictures, proposals, count) for count in PROPOSAL_COUNTS}
    most = PROPOSAL_COUNTS[-1]
    return {f"AR@{count}": by_area[count]["all"] for count in PROPOSAL_COUNTS} | {
        f"AR_{area}@{most}": by_area[most][area] for area in AREAS
    }


def fast_recall(
    pictures: Sequence[Picture], proposals: Sequence[PictureProposals]
) -> dict[str, float]:
    """Return fast_AR@100, fast_AR@300 and fast_AR@1000 of protocol ``proposal_fast``.

    Arguments and errors are those of `evaluate`. Difficult objects are left out as well.
    """
    _check(pictures, proposals)
    truth = {picture.image_id: _boxes_to_find(picture.objects) for picture in pictures}
    ious = [
        pairwise_iou(truth[found.image_id], found.boxes_xyxy[best_first(found.scores)])
        for found in proposals
        if len(truth[found.image_id])
    ]
    total = sum(map(len, truth.values()))
    # Compare in float32, so that an IoU of exactly 0.7 reaches the threshold 0.7.
    thresholds = IOU_THRESHOLDS.astype(np.float32)
    figures = {}
    for count in PROPOSAL_COUNTS:
        matched = [greedy_match(matrix[:, :count]) for matrix in ious]
        found = np.concatenate([np.zeros(0, np.float32), *matched])
        recalls = (found >= thresholds[:, None]).sum(axis=1) / total if total else np.nan
        figures[f"fast_AR@{count}"] = float(np.mean(recalls))
    return figures


def pairwise_iou(
    boxes_xyxy: Float[ndarray, "G 4"], others_xyxy: Float[ndarray, "n 4"]
) -> Float[ndarray, "G n"]:
    """Return the float32 IoU of all pairs, in the reference's order of operations."""
    boxes, others = (boxes.astype(np.float32) for boxes in (boxes_xyxy, others_xyxy))
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    overlap = np.maximum(high - low, 0).prod(axis=2)
    areas = [(array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1]) for array in (boxes, others)]
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


def check_split(split: str, pictures: Sequence[Picture], remedy: str) -> None:
    """Raise UserError, before any inference, if a split has no box to find."""
    if not _has_box_to_find(pictures):
        raise UserError(f"split '{split}': has no box to find, or only crowds; {remedy}")


def _has_box_to_find(pictures: Sequence[Picture]) -> bool:
    return not all(picture.objects.is_crowd.all() for picture in pictures)


def _check(pictures: Sequence[Picture], proposals: Sequence[PictureProposals]) -> None:
    if not _has_box_to_find(pictures):
        raise UserError("ground truth: has no box, or only crowds, so recall is undefined")
    known = {picture.image_id for picture in pictures}
    seen: set[int] = set()
    for found in proposals:
        where = f"proposals of image {found.image_id}"
        if found.image_id not in known:
            raise UserError(f"{where}: the ground truth has no image with this id")
        if found.image_id in seen:
            raise UserError(f"{where}: there are two sets. Pass one for each image")
        seen.add(found.image_id)


def _boxes_to_find(objects: Objects) -> Float[ndarray, "G 4"]:
    boxes_xywh = objects.boxes_xywh[~(objects.is_crowd | objects.is_difficult)]
    corners = (boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:])
    return np.concatenate(corners, axis=1).astype(np.float32)


def _coco_recall_by_area(
    pictures: Sequence[Picture], proposals: Sequence[PictureProposals], count: int
) -> dict[str, float]:
    images = [{"id": picture.image_id} for picture in pictures]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluator = COCOeval(
            _coco(images, _coco_truth(pictures)),
            _coco(images, _detections_that_can_match(pictures, proposals, count)),
            "bbox",
        )
        evaluator.params.useCats = 0
        evaluator.params.maxDets = [count]
        evaluator.evaluate()
        evaluator.accumulate()
    recall = evaluator.eval["recall"]  # [threshold, category, area, maxDets], -1 without boxes
    figures = recall[:, 0, :, 0].mean(axis=0)
    return {
        area: float(figure) if figure >= 0 else math.nan
        for area, figure in zip(evaluator.params.areaRngLbl, figures, strict=True)
    }


def _coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
    coco.createIndex()
    return coco


def _coco_truth(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Return the annotations of pycocotools, all of one category."""
    rows = [
        (picture.image_id, *values)
        for picture in pictures
        for values in zip(
            picture.objects.boxes_xywh.tolist(),
            picture.objects.areas.tolist(),
            picture.objects.is_crowd.tolist(),
            strict=True,
        )
    ]
    # Ids start at 1, because COCOeval treats a match with id 0 as no match.
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": 1,
            "bbox": bbox,
            "area": area,
            "iscrowd": int(is_crowd),
        }
        for number, (image_id, bbox, area, is_crowd) in enumerate(rows, start=1)
    ]


def _detections_that_can_match(
    pictures: Sequence[Picture], proposals: Sequence[PictureProposals], count: int
) -> list[dict[str, Any]]:
    """Return those of each picture's ``count`` best proposals that reach the lowest threshold.

    The others match at no threshold, so they do not change the recall. COCOeval would spend most
    of its time and memory on them, in Python loops.
    """
    objects = {picture.image_id: picture.objects for picture in pictures}
    detections: list[dict[str, Any]] = []
    for found in proposals:
        of_picture = objects[found.image_id]
        truth_xywh = of_picture.boxes_xywh[~of_picture.is_crowd]
        if not len(truth_xywh) or not len(found.scores):
            continue
        best = best_first(found.scores)[:count]
        found_xywh = to_xywh(found.boxes_xyxy[best])
        ious = mask.iou(found_xywh, truth_xywh, [0] * len(truth_xywh))
        for index in np.flatnonzero(ious.max(axis=1) >= IOU_THRESHOLDS[0]):
            width, height = found_xywh[index, 2:]
            detections.append(
                {
                    "id": len(detections) + 1,
                    "image_id": found.image_id,
                    "category_id": 1,
                    "bbox": found_xywh[index].tolist(),
                    "area": width * height,
                    "score": float(found.scores[best[index]]),
                }
            )
    return detections
