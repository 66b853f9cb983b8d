"""Small COCO-format folders for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rpn_jax.data.dataset import Picture


def picture(index: int, height: int, width: int) -> np.ndarray:
    """Smooth RGB pixels, so that JPEG changes them little."""
    rng = np.random.default_rng(index)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def image_entry(image_id: int, height: int = 40, width: int = 60) -> dict[str, Any]:
    return {"id": image_id, "file_name": f"{image_id:03d}.png", "height": height, "width": width}


def box_entry(number: int, image_id: int, bbox: Any, **more: Any) -> dict[str, Any]:
    entry = {"id": number, "image_id": image_id, "category_id": 1, "bbox": bbox, "iscrowd": 0}
    if "area" not in more and isinstance(bbox, list) and len(bbox) == 4:
        entry["area"] = bbox[2] * bbox[3]
    return {**entry, **more}


def coco_annotations(
    pictures: Sequence[Picture], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the 'annotations' of a COCO file that hold all the ground truth of the pictures."""
    return [
        {
            "id": int(number),
            "image_id": picture.image_id,
            "category_id": category_ids[label],
            "bbox": bbox.tolist(),
            "area": float(area),
            "iscrowd": int(is_crowd),
        }
        for picture in pictures
        for number, label, bbox, area, is_crowd in zip(
            picture.objects.ids,
            picture.objects.labels,
            picture.objects.boxes_xywh,
            picture.objects.areas,
            picture.objects.is_crowd,
            strict=True,
        )
    ]


def write_coco_folder(
    root: Path, images: list[Any], annotations: list[Any], split: str = "train"
) -> Path:
    """Write annotations, and a PNG for each complete entry of ``images``."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    for index, image in enumerate(images):
        path = root / split / image["file_name"]
        path.parent.mkdir(exist_ok=True)
        pixels = picture(index, image["height"], image["width"])
        cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    annotation_file(root, split).write_text(json.dumps(coco))
    return root


def annotation_file(root: Path, split: str = "train") -> Path:
    return root / "annotations" / f"instances_{split}.json"
