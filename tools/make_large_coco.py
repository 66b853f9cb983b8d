"""Write a COCO folder as large as train2017, without pixels, and measure how long it takes to open.

python -m tools.make_large_coco write FOLDER     # 118,287 empty pictures, 860,000 boxes, 0.5 GB
python -m tools.make_large_coco measure FOLDER   # CPU time and peak memory of opening and planning
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np

from rpn_jax.config import DataConfig
from rpn_jax.data.catalog import open_dataset
from rpn_jax.data.plan import plan_training

SPLIT = "train2017"
PICTURES = 118_287
BOXES = 860_001
OUTLINE_POINTS = 15
"""Points of each outline. They bring the size of an annotation to that of COCO's, 350 bytes."""
CATEGORIES = 80


def write(folder: Path) -> None:
    """Write the annotations, and an empty file for each picture."""
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    (folder / SPLIT).mkdir()
    images = [
        {"id": number, "file_name": f"{number:012d}.jpg", "height": height, "width": width}
        for number, (height, width) in enumerate(
            np.array([(480, 640), (640, 480), (427, 640)])[rng.integers(0, 3, PICTURES)].tolist(),
            start=1,
        )
    ]
    for image in images:
        (folder / SPLIT / image["file_name"]).touch()
    path = folder / "annotations" / f"instances_{SPLIT}.json"
    with open(path, "w") as file:
        file.write(f'{{"images": {json.dumps(images)}, "annotations": [')
        for number in range(1, BOXES + 1):
            separator = "" if number == 1 else ", "
            file.write(separator + json.dumps(_annotation(rng, number)))
        categories = [{"id": k, "name": f"class {k}"} for k in range(1, CATEGORIES + 1)]
        file.write(f'], "categories": {json.dumps(categories)}}}')
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")


def measure(folder: Path) -> None:
    """Open the folder and plan the training."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = DataConfig(root=str(folder))
    start = time.process_time()
    dataset = open_dataset(config, SPLIT)
    opened = time.process_time()
    plan = plan_training(dataset, config)
    end = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{len(dataset.pictures)} pictures, {plan.layout.box_counts.sum()} boxes")
    print(f"CPU time: opened in {opened - start:.1f} s, planned in {end - opened:.1f} s")
    print(f"peak memory {peak / 1e6:.2f} GB, of which {before / 1e6:.2f} GB before opening")


def _annotation(rng: np.random.Generator, number: int) -> dict[str, object]:
    x, y, width, height = rng.uniform((0, 0, 2, 2), (200, 200, 200, 200)).round(2).tolist()
    outline = (rng.random(2 * OUTLINE_POINTS) * 400).round(2).tolist()
    return {
        "segmentation": [outline],
        "area": round(width * height * 0.7, 4),
        "iscrowd": int(rng.random() < 0.01),
        "image_id": int(rng.integers(1, PICTURES + 1)),
        "bbox": [x, y, width, height],
        "category_id": int(rng.integers(1, CATEGORIES + 1)),
        "id": number,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=("write", "measure"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    {"write": write, "measure": measure}[options.command](options.folder)
