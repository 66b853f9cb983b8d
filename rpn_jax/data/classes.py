"""Keep the objects of some classes only, to train on these or to measure the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.data.dataset import Dataset, Picture
from rpn_jax.errors import UserError, nearest
from rpn_jax.files import read_text

if TYPE_CHECKING:
    from jaxtyping import UInt8


@dataclass(frozen=True, eq=False)
class ClassSubset:
    """A dataset with the objects of some classes (a `Dataset`).

    The pictures, the class names and the labels are those of the whole dataset.
    """

    whole: Dataset
    """Dataset with the objects of all classes."""
    pictures: Sequence[Picture]
    """All its pictures, with fewer objects."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of all classes, also of those without objects."""
        return self.whole.class_names

    @property
    def category_ids(self) -> Sequence[int]:
        """Ids of all classes."""
        return self.whole.category_ids

    def load_image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return the RGB pixels of a picture. Raises the errors of the whole dataset."""
        return self.whole.load_image(index)


def keep_classes(dataset: Dataset, classes: Sequence[str], key: str) -> Dataset:
    """Return the dataset with the objects of the given classes. Others are left out.

    Args:
      dataset: dataset with objects of all classes.
      classes: names of classes, or one path of a text file with a name on each line. Empty keeps
        all.
      key: name of the config field, for messages.

    Raises:
      UserError: the dataset has no such class, or the file cannot be read.
    """
    if not classes:
        return dataset
    known = list(dataset.class_names)
    for name in (names := _names(classes)):
        if name not in known:
            hint = nearest(name, known) or "."
            raise UserError(f"{key}: the dataset has no class '{name}'{hint} It has: {known}")
    labels = [known.index(name) for name in names]
    pictures = [
        replace(picture, objects=picture.objects.select(np.isin(picture.objects.labels, labels)))
        for picture in dataset.pictures
    ]
    return ClassSubset(dataset, pictures)


def _names(classes: Sequence[str]) -> list[str]:
    if len(classes) == 1 and classes[0].endswith(".txt"):
        lines = read_text(Path(classes[0])).splitlines()
        return [line.strip() for line in lines if line.strip()]
    return list(classes)
