"""The classes of a dataset as those of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rpn_jax.config import Config
from rpn_jax.data.dataset import Dataset
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


def check_classes(config: Config, dataset: Dataset, split: str) -> None:
    """Raise a UserError unless a dataset has the classes of the config's second stage, in order.

    Labels of both are positions in their class names, so other classes would give wrong figures.
    """
    roi = config.model.roi
    if roi is None or roi.class_names == tuple(dataset.class_names):
        return
    raise UserError(
        f"{split}: has the classes {_names(dataset.class_names)}, but the model has "
        f"{_names(roi.class_names)}. Evaluate it on a dataset with the same classes in this order."
    )


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} ... ({len(names)})" if len(names) > 5 else shown
