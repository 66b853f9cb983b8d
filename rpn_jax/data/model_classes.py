"""The classes of a dataset as those of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rpn_jax.config import Config
from rpn_jax.data.dataset import Dataset
from rpn_jax.data.views import relabel
from rpn_jax.errors import UserError


def with_classes(config: Config, dataset: Dataset, split: str) -> Config:
    """Return a config whose second stage has the classes of a dataset.

    A config without a second stage is returned unchanged.

    Args:
      config: the config of a detector.
      dataset: the dataset to train on.
      split: name of the dataset, for the error message.

    Raises:
      UserError: the detector needs classes, and the dataset has none.
    """
    roi = config.model.roi
    if roi is None:
        return config
    if not dataset.class_names:
        raise UserError(
            f"{split}: has no classes, which config {config.name} needs. Use an RPN, or "
            "annotations with categories."
        )
    roi = replace(
        roi,
        num_classes=len(dataset.class_names),
        class_names=tuple(dataset.class_names),
        category_ids=tuple(dataset.category_ids),
    )
    return replace(config, model=replace(config.model, roi=roi))


def match_classes(config: Config, dataset: Dataset, split: str) -> Dataset:
    """Return a dataset whose labels are those of the config's second stage.

    Classes are matched by name. The dataset may have fewer, in another order. Without a second
    stage it is returned unchanged.

    Raises:
      UserError: the dataset has a class that the model does not have.
    """
    roi = config.model.roi
    if roi is None or roi.class_names == tuple(dataset.class_names):
        return dataset
    unknown = [name for name in dataset.class_names if name not in roi.class_names]
    if unknown:
        raise UserError(
            f"{split}: has the classes {_names(dataset.class_names)}. The model has "
            f"{_names(roi.class_names)}, and not '{unknown[0]}'. Rename classes with "
            "--data.class-map OLD=NEW, or evaluate on a dataset with classes of the model."
        )
    labels = np.array([roi.class_names.index(name) for name in dataset.class_names], np.int32)
    return relabel(dataset, labels, roi.class_names, roi.category_ids)


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} ... ({len(names)})" if len(names) > 5 else shown
