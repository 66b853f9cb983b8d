"""Datasets made of other datasets: with fewer objects, other classes, or several as one."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.data.dataset import Dataset, Picture, Verified, class_frequencies

if TYPE_CHECKING:
    from jaxtyping import Bool, Int32, UInt8


@dataclass(frozen=True, eq=False)
class View:
    """The pictures of one or more datasets, one after another (a `Dataset`)."""

    parts: tuple[Dataset, ...]
    """Datasets that load the pixels."""
    pictures: Sequence[Picture]
    """The pictures of all parts, in this order. Their names, objects and labels may differ."""
    class_names: tuple[str, ...]
    """Name of each class."""
    category_ids: tuple[int, ...]
    """Id of each class in files of ground truth and results."""

    @property
    def frequencies(self) -> dict[str, str]:
        """Frequencies of the classes of all parts, by the names that the parts have."""
        return {
            name: frequency
            for part in self.parts
            for name, frequency in class_frequencies(part).items()
        }

    def load_image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return the RGB pixels of a picture. Raise what its dataset raises."""
        part, position = self.place(index)
        return part.load_image(position)

    def place(self, index: int) -> tuple[Dataset, int]:
        """Return the part that holds a picture, and the picture's position in it."""
        ends = list(accumulate(len(part.pictures) for part in self.parts))
        number = bisect.bisect_right(ends, index)
        return self.parts[number], index - ends[number] + len(self.parts[number].pictures)


def source_of(dataset: Dataset, index: int) -> tuple[Dataset, int]:
    """Return the dataset that reads a picture itself, and the picture's position in it."""
    while isinstance(dataset, View):
        dataset, index = dataset.place(index)
    return dataset, index


def select_labels(dataset: Dataset, is_kept: Bool[np.ndarray, " C"]) -> View:
    """Return the dataset with the objects of some classes.

    The pictures, the class names and the labels stay the same.

    Args:
      dataset: dataset with objects of all classes.
      is_kept: mask over its classes.
    """
    pictures = [
        replace(picture, objects=picture.objects.select(is_kept[picture.objects.labels]))
        for picture in dataset.pictures
    ]
    return View((dataset,), pictures, tuple(dataset.class_names), tuple(dataset.category_ids))


def relabel(
    dataset: Dataset,
    new_labels: Int32[np.ndarray, " C"],
    class_names: Sequence[str],
    category_ids: Sequence[int],
) -> View:
    """Return the dataset with other classes.

    Args:
      dataset: a dataset.
      new_labels: position in ``class_names`` of each of its classes.
      class_names, category_ids: the classes to use.
    """
    pictures = [_relabel_picture(picture, new_labels) for picture in dataset.pictures]
    return View((dataset,), pictures, tuple(class_names), tuple(category_ids))


def _relabel_picture(picture: Picture, new_labels: Int32[np.ndarray, " C"]) -> Picture:
    verified = picture.verified
    if verified is not None:
        verified = Verified(new_labels[verified.absent], new_labels[verified.not_exhaustive])
    objects = replace(picture.objects, labels=new_labels[picture.objects.labels])
    return replace(picture, objects=objects, verified=verified)
