"""Average recall of proposals, by two protocols.

Average recall (AR) is the share of ground-truth boxes that are found, averaged over the IoU
thresholds 0.50, 0.55 .. 0.95 (Hosang et al. 2015). ``@k`` counts the k best proposals of each
picture.

``proposal``
    COCOeval of pycocotools without categories: in the order of their scores, proposals take the
    best free box above the threshold. Its figures are named ``AR...``.
``proposal_fast``
    The reference's own measure: of each picture's IoU matrix the largest entry is taken, with its
    row and column, until no box is left. Its figures are named ``fast_AR...``; the AR1000 that
    the reference publishes are of this kind.

Both leave crowd boxes out; a figure for which there is no box is NaN.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from rpn_jax.errors import UserError
from rpn_jax.inference.results import PictureProposals, best_first, to_xywh

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from numpy import ndarray
    from rich.table import Table

PROPOSAL_COUNTS = (100, 300, 1000)
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = ("small", "medium", "large")
MIN_UNION = 1e-6
"""Square pixels; the reference's guard against a division by zero."""

MEANINGS = {
    "AR@100": "100 best proposals a picture",
    "AR@300": "300 best",
    "AR@1000": "1000 best",
    "AR_small@1000": "... boxes below 32 x 32 pixels",
    "AR_medium@1000": "... up to 96 x 96 pixels",
    "AR_large@1000": "... above 96 x 96 pixels",
}


def evaluate(annotations: dict[str, Any], pictures: Sequence[PictureProposals]) -> dict[str, float]:
    """The figures of both protocols.

    Args:
      annotations: ground truth as in a COCO file: lists ``images`` and ``annotations``.
      pictures: at most one entry a picture; a picture of the annotations without an entry counts
        as one without proposals.

    Raises:
      UserError: annotations without a box to find, or proposals for an unknown picture.
    """
    return coco_recall(annotations, pictures) | fast_recall(annotations, pictures)


def coco_recall(
    annotations: dict[str, Any], pictures: Sequence[PictureProposals]
) -> dict[str, float]:
    """AR@100, AR@300, AR@1000 and AR_{small,medium,large}@1000 of protocol ``proposal``.

    Arguments and errors are those of `evaluate`. A box's size class is that of its ``area``
    (COCO: of its outline), or of width times height where that is missing.
    """
    _check(annotations, pictures)
    by_area = {
        count: _coco_recall_by_area(annotations, pictures, count) for count in PROPOSAL_COUNTS
    }
    most = PROPOSAL_COUNTS[-1]
    return {f"AR@{count}": by_area[count]["all"] for count in PROPOSAL_COUNTS} | {
        f"AR_{area}@{most}": by_area[most][area] for area in AREAS
    }


def fast_recall(
    annotations: dict[str, Any], pictures: Sequence[PictureProposals]
) -> dict[str, float]:
    """fast_AR@100, fast_AR@300 and fast_AR@1000 of protocol ``proposal_fast``.

    Arguments and errors are those of `evaluate`. Boxes marked ``ignore`` are left out as well.
    """
    _check(annotations, pictures)
    truth = _ground_truth_xyxy(annotations)
    ious = [
        pairwise_iou(truth[picture.image_id], picture.boxes_xyxy[best_first(picture.scores)])
        for picture in pictures
        if picture.image_id in truth
    ]
    total = sum(map(len, truth.values()))
    # Compared in float32, so that an IoU of exactly 0.7 reaches the threshold 0.7.
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
    """float32 IoU of all pairs, in the reference's order of operations."""
    boxes, others = (boxes.astype(np.float32) for boxes in (boxes_xyxy, others_xyxy))
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    overlap = np.maximum(high - low, 0).prod(axis=2)
    areas = [(array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1]) for array in (boxes, others)]
    union = areas[0][:, None] + areas[1][None, :] - overlap
    return overlap / np.maximum(union, MIN_UNION)


def greedy_match(ious: Float[ndarray, "G n"]) -> Float[ndarray, " G"]:
    """IoU with which each box is found, greedily by IoU, in the order in which they are found.

    Each round takes the largest entry of the matrix (the first of equal ones) and strikes out its
    row and column; boxes for which no proposal is left get -1.
    """
    left = ious.copy()
    found = np.full(len(ious), -1, np.float32)
    for round_ in range(min(ious.shape)):
        row, column = divmod(int(left.argmax()), left.shape[1])
        found[round_] = left[row, column]
        left[row] = -1
        left[:, column] = -1
    return found


def recall_table(figures: dict[str, float]) -> Table:
    """The figures of `evaluate` as a table that explains itself."""
    from rich.table import Table

    table = Table(
        title="Average recall (AR) of the proposals",
        caption="AR: share of the ground-truth boxes found, mean over IoU 0.50, 0.55 .. 0.95. "
        "proposal: COCOeval without categories. proposal_fast: greedy match by IoU, the measure "
        "of the published AR1000. Both leave crowd boxes out. A dash: not measured, or no such "
        "box.",
        caption_justify="left",
    )
    table.add_column("figure")
    table.add_column("counted")
    table.add_column("proposal", justify="right")
    table.add_column("proposal_fast", justify="right")
    for name, meaning in MEANINGS.items():
        table.add_row(name, meaning, *map(_cell, (figures.get(name), figures.get(f"fast_{name}"))))
    return table


def check_split(split: str, annotations: dict[str, Any], remedy: str) -> None:
    """Refuse, before any inference, a split that has no box to find; raises UserError."""
    if not _has_box_to_find(annotations):
        raise UserError(f"split '{split}': has no box to find, or crowds alone; {remedy}")


def _has_box_to_find(annotations: dict[str, Any]) -> bool:
    return not all(annotation.get("iscrowd", 0) for annotation in annotations["annotations"])


def _check(annotations: dict[str, Any], pictures: Sequence[PictureProposals]) -> None:
    for key in ("images", "annotations"):
        if not isinstance(annotations.get(key), list):
            raise UserError(f"annotations: '{key}' is no list; recall needs ground truth as COCO's")
    if not _has_box_to_find(annotations):
        raise UserError("annotations: hold no box but crowds, so there is no recall to measure")
    known = {image["id"] for image in annotations["images"]}
    for annotation in annotations["annotations"]:
        if annotation["image_id"] not in known:
            raise UserError(
                f"annotation {annotation.get('id')}: image_id {annotation['image_id']} is none of "
                "the images'"
            )
    seen: set[int] = set()
    for picture in pictures:
        if picture.image_id not in known:
            raise UserError(f"proposals of image {picture.image_id}: no such id in the annotations")
        if picture.image_id in seen:
            raise UserError(f"proposals of image {picture.image_id}: there are two sets; give one")
        seen.add(picture.image_id)


def _ground_truth_xyxy(annotations: dict[str, Any]) -> dict[int, Float[ndarray, "G 4"]]:
    boxes = defaultdict(list)
    for annotation in annotations["annotations"]:
        if not (annotation.get("iscrowd", 0) or annotation.get("ignore", 0)):
            x, y, width, height = annotation["bbox"]
            boxes[annotation["image_id"]].append((x, y, x + width, y + height))
    return {image_id: np.array(rows, np.float32) for image_id, rows in boxes.items()}


def _coco_recall_by_area(
    annotations: dict[str, Any], pictures: Sequence[PictureProposals], count: int
) -> dict[str, float]:
    from pycocotools.cocoeval import COCOeval

    truth = _class_agnostic(annotations)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress.
        evaluator = COCOeval(
            _coco(annotations["images"], truth),
            _coco(annotations["images"], _detections_that_can_match(truth, pictures, count)),
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


def _coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> Any:
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
    coco.createIndex()
    return coco


def _class_agnostic(annotations: dict[str, Any]) -> list[dict[str, Any]]:
    # Ids from 1: COCOeval takes a box with id 0 for "no match".
    return [
        {
            "id": number,
            "image_id": annotation["image_id"],
            "category_id": 1,
            "bbox": annotation["bbox"],
            "area": annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]),
            "iscrowd": annotation.get("iscrowd", 0),
        }
        for number, annotation in enumerate(annotations["annotations"], start=1)
    ]


def _detections_that_can_match(
    truth: list[dict[str, Any]], pictures: Sequence[PictureProposals], count: int
) -> list[dict[str, Any]]:
    """Of each picture's ``count`` best proposals those that reach the lowest threshold.

    The others match at no threshold, so they change no recall; COCOeval would spend most of its
    time and memory on them, one by one, in Python.
    """
    from pycocotools import mask

    boxes_xywh = defaultdict(list)
    for annotation in truth:
        if not annotation["iscrowd"]:
            boxes_xywh[annotation["image_id"]].append(annotation["bbox"])
    detections: list[dict[str, Any]] = []
    for picture in pictures:
        truth_xywh = np.array(boxes_xywh[picture.image_id], np.float64)
        if not len(truth_xywh) or not len(picture.scores):
            continue
        best = best_first(picture.scores)[:count]
        found_xywh = to_xywh(picture.boxes_xyxy[best])
        ious = mask.iou(found_xywh, truth_xywh, [0] * len(truth_xywh))
        for index in np.flatnonzero(ious.max(axis=1) >= IOU_THRESHOLDS[0]):
            width, height = found_xywh[index, 2:]
            detections.append(
                {
                    "id": len(detections) + 1,
                    "image_id": picture.image_id,
                    "category_id": 1,
                    "bbox": found_xywh[index].tolist(),
                    "area": width * height,
                    "score": float(picture.scores[best[index]]),
                }
            )
    return detections


def _cell(figure: float | None) -> str:
    return "-" if figure is None or math.isnan(figure) else f"{figure:.3f}"
