"""Made ground truth and detections, and COCOeval itself."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rpn_jax.data.dataset import Objects, Picture
from rpn_jax.inference.results import PictureDetections
from tests.golden_files import FOLDER

AP_CASE = FOLDER / "two_stage" / "ap"
"""Ground truth, made detections, and the reference's figures."""


@dataclass(frozen=True)
class MadeDataset:
    """Ground truth without pixels (a `Dataset`)."""

    pictures: list[Picture]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def load_image(self, index: int) -> np.ndarray:
        raise NotImplementedError


def truth_of(
    boxes_xywh: dict[int, list[list[float]]], is_crowd: bool = False, is_difficult: bool = False
) -> list[Picture]:
    """Return pictures with boxes by their id. The flags are those of every box."""
    return [
        picture_of(
            image_id,
            [
                {
                    "id": number,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": is_crowd,
                    "ignore": is_difficult,
                }
                for number, box in enumerate(boxes)
            ],
        )
        for image_id, boxes in boxes_xywh.items()
    ]


def picture_of(image_id: int, annotations: list[dict[str, Any]]) -> Picture:
    def column(name: str, dtype: type) -> np.ndarray:
        return np.array([annotation.get(name, 0) for annotation in annotations], dtype)

    objects = Objects(
        boxes_xywh=column("bbox", np.float64).reshape(-1, 4),
        labels=column("category_id", np.int32),
        is_crowd=column("iscrowd", bool),
        is_difficult=column("ignore", bool),
        areas=column("area", np.float64),
        ids=column("id", np.int64),
    )
    return Picture(image_id, f"{image_id}.png", 600, 600, objects)


def pictures_of(coco: dict[str, Any]) -> list[Picture]:
    return [
        picture_of(image["id"], [a for a in coco["annotations"] if a["image_id"] == image["id"]])
        for image in coco["images"]
    ]


def dataset_of(coco: dict[str, Any]) -> MadeDataset:
    """Return the dataset of a COCO file's content. Its labels are positions in 'categories'."""
    ids = tuple(category["id"] for category in coco["categories"])
    annotations = [
        {**annotation, "category_id": ids.index(annotation["category_id"])}
        for annotation in coco["annotations"]
    ]
    return MadeDataset(
        pictures_of({**coco, "annotations": annotations}),
        tuple(category["name"] for category in coco["categories"]),
        ids,
    )


def detections_of(image_id: int, boxes_xyxy: Any, scores: Any, labels: Any) -> PictureDetections:
    return PictureDetections(
        image_id,
        np.array(boxes_xyxy, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int32),
    )


def dataset(*annotations: dict[str, Any], classes: int = 1) -> MadeDataset:
    """Return a dataset of two pictures, with ids 1 and 2."""
    pictures = [
        picture_of(image_id, [each for each in annotations if each["image_id"] == image_id])
        for image_id in (1, 2)
    ]
    names = tuple(f"class {number}" for number in range(classes))
    return MadeDataset(pictures, names, tuple(range(1, classes + 1)))


def box(image_id: int, x: float, label: int = 0, **flags: bool) -> dict[str, Any]:
    return {
        "image_id": image_id, "category_id": label, "bbox": [x, 0, 50, 50], "area": 2500, **flags,
    }  # fmt: skip


def run_cocoeval(
    coco: dict[str, Any], results: list[dict[str, Any]], *, use_classes: bool, counts: list[int]
) -> COCOeval:
    """Run COCOeval as its own documentation does."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"info": {}} | coco
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.params.useCats = int(use_classes)
        evaluator.params.maxDets = counts
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator
