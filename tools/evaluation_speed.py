"""Measure the evaluation at the size of COCO's val2017, on made results.

python -m tools.evaluation_speed recall                     # 1,000 proposals in each picture
python -m tools.evaluation_speed ap                         # 100 detections of 80 classes
python -m tools.evaluation_speed recall --by pycocotools    # the same by COCOeval
python -m tools.evaluation_speed ap --by pycocotools

Prints CPU time, wall time and peak memory, and the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from rpn_jax.data.dataset import Objects, Picture
from rpn_jax.evaluation.average_precision import evaluate_detections
from rpn_jax.evaluation.recall import evaluate
from rpn_jax.inference.results import PictureDetections, PictureProposals, to_xywh

BOXES_PER_PICTURE = 7.4
"""Mean of COCO's val2017."""
CLASSES = 80
PROPOSALS = 1000
DETECTIONS = 100
CROWDS = 0.012
"""Share of boxes that are crowds, as in val2017."""
WIDTH, HEIGHT = 640, 480


@dataclass(frozen=True)
class MadeDataset:
    """Ground truth without pixels (a `Dataset`)."""

    pictures: list[Picture]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def load_image(self, index: int) -> np.ndarray:
        """Raise, because there are no pixels."""
        raise NotImplementedError


def make_dataset(count: int) -> MadeDataset:
    """Return pictures with boxes of all sizes."""
    rng = np.random.default_rng(0)
    ids = range(1, CLASSES + 1)
    return MadeDataset(
        [_make_picture(rng, image_id) for image_id in range(1, count + 1)],
        tuple(f"class {number}" for number in ids),
        tuple(ids),
    )


def make_detections(dataset: MadeDataset, count: int) -> list[PictureDetections]:
    """Return ``count`` detections of each picture. Half of them lie near a box."""
    rng = np.random.default_rng(1)
    return [_make_detections(rng, picture, count) for picture in dataset.pictures]


def by_rpn_jax(
    mode: str, dataset: MadeDataset, detections: list[PictureDetections]
) -> dict[str, float]:
    """Return the figures of this package."""
    if mode == "ap":
        return evaluate_detections(dataset, detections)
    proposals = [
        PictureProposals(each.image_id, each.boxes_xyxy, each.scores) for each in detections
    ]
    return evaluate(dataset.pictures, proposals)


def by_pycocotools(
    mode: str, dataset: MadeDataset, detections: list[PictureDetections]
) -> dict[str, float]:
    """Return COCOeval's figures, as its own documentation computes them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _coco(dataset)
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(_results(detections)), "bbox")
        if mode == "recall":
            evaluator.params.useCats = 0
            evaluator.params.maxDets = [100, 300, 1000]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    names = (
        ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
        + (("AR@1", "AR@10", "AR@100") if mode == "ap" else ("AR@100", "AR@300", "AR@1000"))
        + tuple(
            f"AR_{area}@{100 if mode == 'ap' else 1000}" for area in ("small", "medium", "large")
        )
    )
    figures = dict(zip(names, evaluator.stats.tolist(), strict=True))
    return {name: value for name, value in figures.items() if mode == "ap" or "AR" in name}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=("recall", "ap"))
    parser.add_argument("--by", choices=("rpn_jax", "pycocotools"), default="rpn_jax")
    parser.add_argument("--pictures", type=int, default=5000)
    options = parser.parse_args()
    dataset = make_dataset(options.pictures)
    detections = make_detections(dataset, PROPOSALS if options.mode == "recall" else DETECTIONS)
    before = _peak_memory()
    start, cpu = time.perf_counter(), time.process_time()
    measured = by_rpn_jax if options.by == "rpn_jax" else by_pycocotools
    figures = measured(options.mode, dataset, detections)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    for name, value in figures.items():
        if "/" not in name:
            print(f"{name} {value:.9f}")
    boxes = sum(len(picture.objects.labels) for picture in dataset.pictures)
    found = sum(len(each.scores) for each in detections)
    print(f"{len(dataset.pictures)} pictures, {boxes} boxes, {found} results, by {options.by}")
    print(f"CPU time {cpu:.1f} s, wall time {wall:.1f} s")
    print(f"peak memory {_peak_memory():.2f} GB, of which {before:.2f} GB with the results made")


def _peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _make_picture(rng: np.random.Generator, image_id: int) -> Picture:
    count = min(int(rng.geometric(1 / BOXES_PER_PICTURE)), 60)
    sides = rng.lognormal(4, 1, (count, 2)).clip(4, (WIDTH - 1, HEIGHT - 1))
    corners = rng.uniform(0, 1, (count, 2)) * ((WIDTH, HEIGHT) - sides)
    objects = Objects(
        boxes_xywh=np.concatenate([corners, sides], axis=1).round(2),
        labels=rng.integers(0, CLASSES, count).astype(np.int32),
        is_crowd=rng.random(count) < CROWDS,
        is_difficult=np.zeros(count, bool),
        areas=sides.prod(axis=1) * rng.uniform(0.4, 1, count),
        ids=np.arange(count),
    )
    return Picture(image_id, f"{image_id}.jpg", HEIGHT, WIDTH, objects)


def _make_detections(rng: np.random.Generator, picture: Picture, count: int) -> PictureDetections:
    truth = picture.objects
    near = rng.integers(0, len(truth.labels), count // 2)
    low, sides = truth.boxes_xywh[near, :2], truth.boxes_xywh[near, 2:]
    boxes = np.concatenate([low, low + sides], axis=1)
    boxes += rng.normal(0, 0.12, boxes.shape) * np.tile(sides, 2)
    corners = rng.uniform(0, (WIDTH - 20, HEIGHT - 20), (count - len(near), 2))
    far = np.concatenate([corners, corners + rng.uniform(4, 200, corners.shape)], axis=1)
    boxes = np.concatenate([boxes, far])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    is_right = rng.random(len(near)) < 0.7
    labels[: len(near)][is_right] = truth.labels[near][is_right]
    scores = rng.random(count) ** 3
    scores[: len(near)] **= 0.5
    return PictureDetections(
        picture.image_id, boxes.astype(np.float32), scores.astype(np.float32), labels
    )


def _coco(dataset: MadeDataset) -> dict[str, Any]:
    rows = [
        (picture.image_id, *row)
        for picture in dataset.pictures
        for row in zip(
            picture.objects.boxes_xywh.tolist(),
            picture.objects.areas.tolist(),
            picture.objects.labels.tolist(),
            picture.objects.is_crowd.tolist(),
            strict=True,
        )
    ]
    return {
        "info": {},
        "images": [{"id": picture.image_id} for picture in dataset.pictures],
        "categories": [{"id": number} for number in dataset.category_ids],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "bbox": bbox,
                "area": area,
                "category_id": dataset.category_ids[label],
                "iscrowd": int(is_crowd),
            }
            for number, (image_id, bbox, area, label, is_crowd) in enumerate(rows, start=1)
        ],
    }


def _results(detections: list[PictureDetections]) -> list[dict[str, Any]]:
    return [
        {"image_id": each.image_id, "category_id": label + 1, "bbox": bbox, "score": score}
        for each in detections
        for bbox, score, label in zip(
            to_xywh(each.boxes_xyxy).tolist(),
            each.scores.tolist(),
            each.labels.tolist(),
            strict=True,
        )
    ]


if __name__ == "__main__":
    main()
