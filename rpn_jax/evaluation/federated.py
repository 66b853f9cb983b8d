"""The parts of LVIS's evaluation that differ from COCO's (Gupta et al. 2019, section 4).

The pictures of a federated dataset are checked for a few classes each. Detections of other classes
are left out, because nobody knows whether they are right. Where a class is not annotated
exhaustively, a detection that takes no box is not counted as wrong. The 300 best detections of a
picture are evaluated, over all classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.data.dataset import Dataset, Picture, class_frequencies
from rpn_jax.inference.results import PictureDetections, best_first

if TYPE_CHECKING:
    from jaxtyping import Int64

MAX_DETECTIONS = 300
"""Number of detections of a picture that are evaluated."""
FREQUENCIES = {"rare": "r", "common": "c", "frequent": "f"}
"""LVIS's letter of each group of classes: in less than 10, less than 100, or more pictures."""


def is_federated(pictures: Sequence[Picture]) -> bool:
    """Return whether the pictures are checked for some classes only."""
    return any(picture.verified is not None for picture in pictures)


def verified_detections(
    pictures: Sequence[Picture], detections: Sequence[PictureDetections]
) -> list[PictureDetections]:
    """Return the `MAX_DETECTIONS` best detections of each picture that are of checked classes.

    Args:
      pictures: pictures with their ground truth.
      detections: at most one entry for each picture.
    """
    by_id = {picture.image_id: picture for picture in pictures}
    return [_verified(by_id[found.image_id], found) for found in detections]


def frequency_groups(dataset: Dataset) -> dict[str, Int64[np.ndarray, " k"]]:
    """Return the labels of rare, common and frequent classes, if the dataset has frequencies."""
    known = class_frequencies(dataset)
    letters = np.array([known.get(name, "") for name in dataset.class_names])
    if not known:
        return {}
    return {group: np.flatnonzero(letters == letter) for group, letter in FREQUENCIES.items()}


def _verified(picture: Picture, found: PictureDetections) -> PictureDetections:
    rows = best_first(found.scores)[:MAX_DETECTIONS]
    if picture.verified is not None:
        checked = np.concatenate([picture.objects.labels, picture.verified.absent])
        rows = rows[np.isin(found.labels[rows], checked)]
    return PictureDetections(
        found.image_id, found.boxes_xyxy[rows], found.scores[rows], found.labels[rows]
    )
