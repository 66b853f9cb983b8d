"""Check ground truth and results before they are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rpn_jax.data.dataset import has_box_to_find
from rpn_jax.errors import UserError

if TYPE_CHECKING:
    from rpn_jax.data.dataset import Picture
    from rpn_jax.inference.results import PictureDetections, PictureProposals


def check_truth(pictures: Sequence[Picture], figure: str) -> None:
    """Raise UserError if there is no box to find, so that a figure is undefined."""
    if not has_box_to_find(pictures):
        raise UserError(f"ground truth: has no box, or only crowds, so {figure} is undefined")


def check_entries(
    pictures: Sequence[Picture],
    entries: Sequence[PictureProposals] | Sequence[PictureDetections],
    kind: str,
) -> None:
    """Raise UserError if there are results for an unknown picture, or two sets for one picture.

    Args:
      pictures: pictures with their ground truth.
      entries: results, one entry for each picture.
      kind: "proposals" or "detections", for the message.
    """
    known = {picture.image_id for picture in pictures}
    seen: set[int] = set()
    for entry in entries:
        where = f"{kind} of image {entry.image_id}"
        if entry.image_id not in known:
            raise UserError(f"{where}: the ground truth has no image with this id")
        if entry.image_id in seen:
            raise UserError(f"{where}: there are two sets. Pass one for each image")
        seen.add(entry.image_id)


def check_labels(detections: Sequence[PictureDetections], class_names: Sequence[str]) -> None:
    """Raise UserError if a detection has a label that is not a class of the dataset."""
    for entry in detections:
        wrong = entry.labels[(entry.labels < 0) | (entry.labels >= len(class_names))]
        if len(wrong):
            raise UserError(
                f"detections of image {entry.image_id}: label {wrong[0]} is not a class. The "
                f"dataset has {len(class_names)} classes, with labels 0 to {len(class_names) - 1}."
            )
