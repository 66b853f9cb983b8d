"""Save copies of the pictures of a dataset with their results drawn on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rpn_jax.console import picture_progress, say
from rpn_jax.data.dataset import Dataset, Picture, training_boxes
from rpn_jax.data.transforms import resize
from rpn_jax.inference.draw import draw_boxes, draw_detections, save_picture
from rpn_jax.inference.results import PictureDetections, PictureProposals

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from numpy import ndarray
    from rich.console import Console

    Pixels = UInt8[ndarray, "H W 3"]

NAME_BYTES = 200
"""Most bytes of a picture's name in the name of its copy. The id before it is unique."""

AnyResult = TypeVar("AnyResult", PictureProposals, PictureDetections)


def save_proposals(
    console: Console,
    folder: Path,
    dataset: Dataset,
    results: Iterable[tuple[int, PictureProposals]],
    count: int,
    best: int,
    with_truth: bool,
) -> None:
    """Save a copy of each picture with its best proposals in ``folder``.

    Args:
      console: console to print to.
      folder: folder for the copies. It exists.
      dataset: pictures.
      results: (position in the dataset, proposals) of each picture to draw.
      count: number of pictures to draw.
      best: number of proposals to draw on a picture.
      with_truth: draw the boxes of the ground truth too.

    Raises:
      UserError: a picture cannot be read or a copy cannot be written.
    """

    def drawn(image: Pixels, picture: Picture, result: PictureProposals) -> Pixels:
        truth = training_boxes(picture)[0] if with_truth else None
        return draw_boxes(image, result.boxes_xyxy[:best], result.scores[:best], truth)

    _save(console, folder, dataset, results, count, drawn, f"{best} best proposals")


def save_detections(
    console: Console,
    folder: Path,
    dataset: Dataset,
    results: Iterable[tuple[int, PictureDetections]],
    count: int,
    class_names: Sequence[str],
    best: int,
    with_truth: bool,
) -> None:
    """Save a copy of each picture with its best detections in ``folder``.

    The arguments are those of `save_proposals`, and the name of each class.
    """

    def drawn(image: Pixels, picture: Picture, result: PictureDetections) -> Pixels:
        truth = training_boxes(picture) if with_truth else None
        return draw_detections(image, result.best(best), class_names, truth)

    _save(console, folder, dataset, results, count, drawn, f"{best} best detections")


def _save(
    console: Console,
    folder: Path,
    dataset: Dataset,
    results: Iterable[tuple[int, AnyResult]],
    count: int,
    drawn: Callable[[Pixels, Picture, AnyResult], Pixels],
    what: str,
) -> None:
    """Write a copy of each picture with its results: ``drawn(image, picture, result)``."""
    with picture_progress(console, "drawing", count) as advance:
        for index, result in results:
            picture = dataset.pictures[index]
            image = drawn(_at_full_size(dataset.load_image(index), picture), picture, result)
            path = folder / f"{picture.image_id}_{_short(Path(picture.name).stem)}.png"
            save_picture(path, image)
            advance(1)
    if count == 1:
        say(console, f"the picture with its {what} is {path}")
    else:
        say(console, f"{count} pictures with their {what} are in {folder}")


def _short(stem: str) -> str:
    """Return a name, or its start. File systems allow 255 bytes for a name with id and suffix."""
    encoded = os.fsencode(stem)
    if len(encoded) <= NAME_BYTES:
        return stem
    return encoded[:NAME_BYTES].decode(errors="ignore")


def _at_full_size(image: Pixels, picture: Picture) -> Pixels:
    """Enlarge the pixels of a packed dataset, because boxes are in original pixels."""
    size = (picture.height, picture.width)
    return image if image.shape[:2] == size else resize(image, size)
