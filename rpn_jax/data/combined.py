"""Several datasets as one: the union of their classes, and how often each picture is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.data.dataset import Dataset, Picture, clip_for_training, concatenate_objects
from rpn_jax.data.views import View, relabel

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64

    from rpn_jax.config import DataConfig


def combine(datasets: Sequence[Dataset], names: Sequence[str]) -> Dataset:
    """Return several datasets as one. A single dataset is returned unchanged.

    Classes with the same name become one. They have the order in which they first appear. A class
    keeps its category id, or gets the next free one if an earlier class has that id. If two
    pictures have the same id, all are numbered from 1.

    Args:
      datasets: one or more datasets.
      names: name of each dataset. Names of pictures begin with it, for messages.
    """
    if len(datasets) == 1:
        return datasets[0]
    classes: dict[str, int] = {}
    for dataset in datasets:
        for name, number in zip(dataset.class_names, dataset.category_ids, strict=True):
            is_free = number not in classes.values()
            classes.setdefault(name, number if is_free else max(classes.values()) + 1)
    class_names, category_ids = list(classes), list(classes.values())
    positions = {name: position for position, name in enumerate(class_names)}
    parts = [
        relabel(
            dataset,
            np.array([positions[name] for name in dataset.class_names], np.int32),
            class_names,
            category_ids,
        )
        for dataset in datasets
    ]
    pictures = [
        replace(picture, name=f"{name}: {picture.name}")
        for name, part in zip(names, parts, strict=True)
        for picture in part.pictures
    ]
    if len({picture.image_id for picture in pictures}) < len(pictures):
        pictures = [replace(each, image_id=number) for number, each in enumerate(pictures, start=1)]
    return View(tuple(parts), pictures, tuple(class_names), tuple(category_ids))


def picture_repeats(
    dataset: Dataset, indices: Int64[np.ndarray, " n"], config: DataConfig
) -> Float64[np.ndarray, " N"] | None:
    """Return how often an epoch shows each picture, or None if it shows every picture once.

    It is the product of ``train_repeats`` of its dataset and of its `repeat_factors`.

    Args:
      dataset: dataset to train on.
      indices: positions of the pictures that are trained on. The others get no meaningful number.
      config: ``train_repeats`` and ``repeat_threshold``.
    """
    if not config.train_repeats and not config.repeat_threshold:
        return None
    repeats = np.ones(len(dataset.pictures))
    if config.train_repeats:
        counts = [len(part.pictures) for part in _parts(dataset)]
        repeats *= np.repeat(config.train_repeats, counts)
    if config.repeat_threshold:
        pictures = [dataset.pictures[index] for index in indices]
        repeats[indices] *= repeat_factors(
            pictures, len(dataset.class_names), config.repeat_threshold
        )
    return repeats


def repeat_factors(
    pictures: Sequence[Picture], num_classes: int, threshold: float
) -> Float64[np.ndarray, " N"]:
    """Return how often an epoch shows each picture, so that rare classes are shown more often.

    This is repeat-factor sampling (Gupta et al. 2019, LVIS). With f the share of pictures that
    contain a class, the class has the factor max(1, sqrt(threshold / f)). A picture has the largest
    factor of its classes.

    Args:
      pictures: pictures to train on, one or more.
      num_classes: number of classes of the dataset.
      threshold: share of the pictures below which a class is shown more often.
    """
    objects = concatenate_objects([picture.objects for picture in pictures])
    counts = [len(picture.objects.labels) for picture in pictures]
    owner = np.repeat(np.arange(len(pictures)), counts)
    sizes_wh = np.array([(picture.width, picture.height) for picture in pictures]).reshape(-1, 2)
    _, is_trained = clip_for_training(objects, sizes_wh[owner])
    pairs = np.unique(owner[is_trained] * num_classes + objects.labels[is_trained])
    picture, label = np.divmod(pairs, num_classes)
    shares = np.bincount(label, minlength=num_classes) / len(pictures)
    repeats = np.ones(len(pictures))
    np.maximum.at(repeats, picture, np.sqrt(threshold / shares[label]))
    return repeats


def _parts(dataset: Dataset) -> tuple[Dataset, ...]:
    """Return the datasets that `combine` put together."""
    while isinstance(dataset, View) and len(dataset.parts) == 1:
        dataset = dataset.parts[0]
    return dataset.parts if isinstance(dataset, View) else (dataset,)
