"""Write a large COCO folder, without pixels, and measure how long it takes to open.

python -m tools.make_large_coco write FOLDER     # as large as train2017: 860,001 boxes, 0.4 GB
python -m tools.make_large_coco measure FOLDER   # CPU time and peak memory of opening and planning

With --boxes and --pictures the folder becomes as large as Objects365 or OpenImages.
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
CHUNK = 100_000
"""Number of annotations whose random numbers are drawn together."""
OUTLINE_POINTS = 15
"""Points of each outline. They bring the size of an annotation to that of COCO's, 350 bytes."""
CATEGORIES = 80


def write(folder: Path, pictures: int, boxes: int) -> None:
    """Write the annotations, and an empty file for each picture."""
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    (folder / SPLIT).mkdir()
    images = [
        {"id": number, "file_name": f"{number:012d}.jpg", "height": height, "width": width}
        for number, (height, width) in enumerate(
            np.array([(480, 640), (640, 480), (427, 640)])[rng.integers(0, 3, pictures)].tolist(),
            start=1,
        )
    ]
    for image in images:
        (folder / SPLIT / image["file_name"]).touch()
    path = folder / "annotations" / f"instances_{SPLIT}.json"
    with open(path, "w") as file:
        file.write(f'{{"images": {json.dumps(images)}, "annotations": [')
        for first in range(1, boxes + 1, CHUNK):
            file.write("" if first == 1 else ", ")
            numbers = range(first, min(first + CHUNK, boxes + 1))
            file.write(", ".join(_annotations(rng, numbers, pictures)))
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


def _annotations(rng: np.random.Generator, numbers: range, pictures: int) -> list[str]:
    """Return annotations as JSON. They share some outlines, which readers must skip anyway."""
    count = len(numbers)
    boxes = rng.uniform((0, 0, 2, 2), (200, 200, 200, 200), (count, 4)).round(2)
    outlines = (rng.random((100, 2 * OUTLINE_POINTS)) * 400).round(2).tolist()
    columns = (
        numbers,
        boxes.tolist(),
        (boxes[:, 2:].prod(axis=1) * 0.7).round(4).tolist(),
        (rng.random(count) < 0.01).astype(int).tolist(),
        rng.integers(1, pictures + 1, count).tolist(),
        rng.integers(1, CATEGORIES + 1, count).tolist(),
    )
    return [
        f'{{"segmentation": [{outlines[number % 100]}], "area": {area}, "iscrowd": {crowd}, '
        f'"image_id": {image}, "bbox": {box}, "category_id": {category}, "id": {number}}}'
        for number, box, area, crowd, image, category in zip(*columns, strict=True)
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=("write", "measure"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=PICTURES, help="number of pictures")
    parser.add_argument("--boxes", type=int, default=BOXES, help="number of boxes")
    options = parser.parse_args()
    if options.command == "write":
        write(options.folder, options.pictures, options.boxes)
    else:
        measure(options.folder)
