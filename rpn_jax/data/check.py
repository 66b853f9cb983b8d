"""Check a whole dataset: every annotation, and every picture's pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from rpn_jax.config import Config, DataConfig, Source
from rpn_jax.data.annotations import MAX_OVERHANG, overhang
from rpn_jax.data.bad_pictures import picture_damage
from rpn_jax.data.catalog import open_eval_data, open_train_data
from rpn_jax.data.classes import keep_classes
from rpn_jax.data.coco import annotation_file
from rpn_jax.data.coco_checks import find_problems, read_coco_slowly
from rpn_jax.data.dataset import Dataset, Picture, check_split
from rpn_jax.data.model_classes import match_classes, with_classes
from rpn_jax.data.plan import plan_training, small_pictures
from rpn_jax.data.voc import annotation_errors
from rpn_jax.errors import UserError
from rpn_jax.runtime import loader_threads

Part = Literal["train", "eval"]
Level = Literal["error", "warning"]
PARTS: tuple[Part, ...] = ("train", "eval")
CORRECT = "Correct the annotation"
CLIPPED = "Correct it, or clip such boxes with --data.clip-boxes"
REPLACE = "Replace the file, or remove the picture from the annotations"


@dataclass(frozen=True)
class Problem:
    """Something wrong with a dataset."""

    level: Level
    """'error': training or evaluation stops. 'warning': they run."""
    part: Part
    """Part of the data."""
    file: str
    """File of the annotations, or name of the picture."""
    item: str
    """The entry and its id, or ''."""
    problem: str
    """What is wrong."""
    remedy: str
    """What to do."""


def open_part(config: DataConfig, part: Part) -> Dataset:
    """Open the dataset to train on or to evaluate on. Raises the errors of `open_train_data`."""
    return open_train_data(config) if part == "train" else open_eval_data(config)


def opening_problems(config: DataConfig, part: Part) -> tuple[Dataset | None, list[Problem]]:
    """Open a part of the data.

    Returns:
      The dataset, or None if it cannot be opened, and the problems of its entries.
    """
    try:
        whole = replace(config, clip_boxes=True, train_classes=(), eval_classes=())
        return open_part(whole, part), []
    except UserError as error:
        problems = list(_entry_problems(config, part))
        remedy = "Correct the data or the flag"
        return None, problems or [Problem("error", part, "", "", str(error), remedy)]


def used_objects(config: DataConfig, part: Part, dataset: Dataset) -> tuple[Dataset, list[Problem]]:
    """Leave out the classes that training or evaluation leaves out, and check what remains.

    Args:
      config: classes to train on or to evaluate.
      part: part of the data.
      dataset: what `opening_problems` returned.

    Returns:
      The dataset with the objects that are used, or the whole one if a class is unknown, and the
      problem at which training or evaluation stops after the dataset is opened, if any.
    """
    used = dataset
    try:
        if part == "train":
            used = keep_classes(dataset, config.train_classes, "data.train_classes")
            plan_training(used, config)
        else:
            used = keep_classes(dataset, config.eval_classes, "data.eval_classes")
            check_split(config.eval_name, used.pictures, "Use another --data.eval-split.")
    except UserError as error:
        remedy = "Choose other data, or correct the flag"
        return used, [Problem("error", part, "", "", str(error), remedy)]
    return used, []


def annotation_problems(config: DataConfig, part: Part, dataset: Dataset) -> Iterator[Problem]:
    """Yield the problems of boxes, sizes and names of an opened dataset."""
    if part == "train":
        yield from _small_pictures(config, dataset)
    names = Counter(picture.name for picture in dataset.pictures)
    for picture in dataset.pictures:
        item = f"picture {picture.image_id}"
        if names[picture.name] > 1:
            text = f"has the file name of {names[picture.name] - 1} other pictures"
            yield Problem("warning", part, picture.name, item, text, "Keep one of them")
        for annotation_id, level, text, remedy in _box_problems(picture, config.clip_boxes):
            yield Problem(level, part, picture.name, f"annotation {annotation_id}", text, remedy)
    yield from _zero_areas(part, dataset)


def class_problems(config: Config, train_data: Dataset, eval_data: Dataset) -> Iterator[Problem]:
    """Yield the problem at which a detector's training stops because of the classes."""
    data = config.data
    try:
        match_classes(with_classes(config, train_data, data.train_name), eval_data, data.eval_name)
    except UserError as error:
        yield Problem("error", "eval", "", "", str(error), "Choose data with the same classes")


def _small_pictures(config: DataConfig, dataset: Dataset) -> Iterator[Problem]:
    """Yield one problem for all pictures that are too small to train on."""
    found = np.flatnonzero(small_pictures(dataset.pictures, config))
    for index in found[:1]:
        picture = dataset.pictures[index]
        item = f"picture {picture.image_id}"
        text = (
            f"{picture.width}x{picture.height} pixels, is not trained on because a side is below "
            f"data.min_image_size = {config.min_image_size}. Number of such pictures: {len(found)}"
        )
        remedy = "Lower --data.min-image-size to train on them"
        yield Problem("warning", "train", picture.name, item, text, remedy)


def _zero_areas(part: Part, dataset: Dataset) -> Iterator[Problem]:
    """Yield one problem if boxes are not trained on only because their 'area' is 0.

    It is one problem for all of them, because some programs write 0 for every box.
    """
    found = [
        (picture, row)
        for picture in dataset.pictures
        for row in np.flatnonzero(
            (picture.objects.areas <= 0) & (picture.objects.boxes_xywh[:, 2:] >= 1).all(axis=1)
        )
    ]
    for picture, row in found[:1]:
        item = f"annotation {picture.objects.ids[row]}"
        bbox = picture.objects.boxes_xywh[row].tolist()
        count = f"Number of such boxes: {len(found)}"
        text = f"bbox {bbox} has the 'area' 0 and is not trained on. {count}"
        remedy = "Write width * height, or remove every 'area'"
        yield Problem("warning", part, picture.name, item, text, remedy)


def picture_problems(
    config: DataConfig,
    part: Part,
    dataset: Dataset,
    on_picture: Callable[[int], None],
) -> Iterator[Problem]:
    """Decode every picture in threads, and yield the problems of the files.

    Args:
      config: sets the number of threads.
      part: part of the data.
      dataset: pictures.
      on_picture: called with 1 after each picture.
    """
    level: Level = "error" if config.on_bad_picture == "error" else "warning"
    unreadable: list[int] = []

    def check(index: int) -> Problem | None:
        picture = dataset.pictures[index]
        item = f"picture {picture.image_id}"
        try:
            dataset.load_image(index)
        except UserError as error:
            unreadable.append(index)
            return Problem(level, part, picture.name, item, str(error), REPLACE)
        damage = picture_damage(dataset, index)
        if not damage:
            return None
        text = f"its pixels are damaged ({damage}), so a part of it is decoded as grey"
        return Problem("warning", part, picture.name, item, text, REPLACE)

    with ThreadPoolExecutor(loader_threads(config.loader_threads)) as threads:
        for problem in threads.map(check, range(len(dataset.pictures))):
            on_picture(1)
            if problem:
                yield problem
    most = min(config.max_bad_pictures, len(dataset.pictures) - 1)
    if level == "warning" and len(unreadable) > most:
        text = f"{len(unreadable)} pictures cannot be read, and at most {most} are skipped"
        yield Problem("error", part, "", "", text, "Replace them, or see --data.max-bad-pictures")


def _entry_problems(config: DataConfig, part: Part) -> Iterator[Problem]:
    """Yield the broken entries of COCO and Pascal VOC annotations, if there are any."""
    sources = config.train_sources if part == "train" else (config.eval_source,)
    for source in sources:
        try:
            if source.annotations or source.dataset == "coco":
                yield from _coco_problems(source, part)
            elif source.dataset == "voc":
                for text in annotation_errors(Path(source.root), source.split):
                    file, _, problem = text.partition(": ")
                    yield Problem("error", part, file, "", problem, CORRECT)
        except UserError:
            continue  # The error of opening already says this.


def _coco_problems(source: Source, part: Part) -> Iterator[Problem]:
    file = Path(source.annotations)
    if not source.annotations:
        file = annotation_file(Path(source.root), source.split)
    for text in find_problems(read_coco_slowly(file)):
        item, _, problem = text.partition(": ")
        yield Problem("error", part, str(file), item, problem or text, CORRECT)


def _box_problems(picture: Picture, clip_boxes: bool) -> Iterator[tuple[int, Level, str, str]]:
    """Yield (annotation id, level, problem, remedy) of a picture's boxes."""
    objects = picture.objects
    out = overhang(objects, np.tile([picture.width, picture.height], (len(objects.ids), 1)))
    seen: set[tuple[float, ...]] = set()
    for row, bbox in enumerate(objects.boxes_xywh.tolist()):
        number = int(objects.ids[row])
        is_used = objects.areas[row] > 0
        is_used &= not (objects.is_crowd[row] or objects.is_difficult[row])
        if min(bbox[2:]) < 1:
            text = f"bbox {bbox} is narrower or lower than 1 pixel and is not trained on"
            yield number, "warning", text, CORRECT
        elif is_used and out[row] > MAX_OVERHANG:
            text = (
                f"bbox {bbox} reaches {out[row]:.1f} pixels out of the picture of "
                f"{picture.width}x{picture.height}"
            )
            yield number, "warning" if clip_boxes else "error", text, CLIPPED
        key = (*bbox, int(objects.labels[row]))
        if key in seen:
            text = f"bbox {bbox} repeats a box of the same class"
            yield number, "warning", text, "Remove one of them"
        seen.add(key)
