"""Draw proposals, detections and ground truth on pictures.

Proposals are coloured by their scores. Detections have a colour for each class, and the name of the
class beside them. Ground truth is dashed. A legend is below the picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rpn_jax.errors import UserError, writing
from rpn_jax.inference.colours import LIGHT, Colour, class_colour, viridis
from rpn_jax.inference.legend import (
    class_legend,
    ground_truth_legend,
    legend_item,
    proposals_legend,
    with_legend,
)
from rpn_jax.inference.marks import Mark, Pen, Rectangle, draw_marks, fit
from rpn_jax.inference.results import PictureDetections, best_first

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8
    from numpy import ndarray

MIN_LONG_SIDE = 960
"""Smaller pictures are enlarged to this many pixels, so that labels can be read."""


def draw_boxes(
    image: UInt8[ndarray, "H W 3"],
    boxes_xyxy: Float[ndarray, "n 4"],
    scores: Float[ndarray, " n"] | None = None,
    ground_truth_xyxy: Float[ndarray, "G 4"] | None = None,
) -> UInt8[ndarray, "height width 3"]:
    """Draw proposals, and ground truth if given, on a picture, with a legend below it.

    The score of a box is written beside it where there is room. The best boxes come first.

    Args:
      image: RGB, of any size. A picture smaller than `MIN_LONG_SIDE` is enlarged.
      boxes_xyxy: pixels of ``image``.
      scores: written beside the boxes and shown by their colours. None draws all boxes alike.
      ground_truth_xyxy: pixels of ``image``.

    Returns:
      RGB, the enlarged picture with the rows of the legend below it.
    """
    canvas, scale = _enlarge(image)
    pen = Pen.for_size(*canvas.size)
    count = len(boxes_xyxy)
    labels = [""] * count if scores is None else [f"{score:.2f}" for score in scores]
    colours = _score_colours(count, scores)
    order = np.arange(count) if scores is None else best_first(scores)
    marks = [
        Mark(_rectangle(boxes_xyxy[index], scale, canvas.size), colours[index], labels[index])
        for index in order
    ]
    legend = [proposals_legend(scores, count, pen)]
    truth = []
    if ground_truth_xyxy is not None:
        truth = [Mark(_rectangle(box, scale, canvas.size), LIGHT, "") for box in ground_truth_xyxy]
        legend.append(ground_truth_legend(len(truth), pen))
    draw_marks(canvas, marks, truth, pen)
    return np.asarray(with_legend(canvas, legend))


def draw_detections(
    image: UInt8[ndarray, "H W 3"],
    detections: PictureDetections,
    class_names: Sequence[str],
    ground_truth: tuple[Float[ndarray, "G 4"], Int[ndarray, " G"]] | None = None,
) -> UInt8[ndarray, "height width 3"]:
    """Draw named boxes, and ground truth if given, on a picture, with a legend below it.

    The class and the score of a box are written beside it where there is room. The best boxes come
    first. The legend lists the classes in the picture with their numbers of boxes.

    Args:
      image: RGB, of any size. A picture smaller than `MIN_LONG_SIDE` is enlarged.
      detections: boxes in pixels of ``image``.
      class_names: name of each class.
      ground_truth: boxes xyxy in pixels of ``image``, and their labels. They are dashed, in the
        colours of their classes.

    Returns:
      RGB, the enlarged picture with the rows of the legend below it.
    """
    canvas, scale = _enlarge(image)
    pen = Pen.for_size(*canvas.size)
    marks = [
        Mark(
            _rectangle(detections.boxes_xyxy[index], scale, canvas.size),
            class_colour(label),
            fit(class_names[label], f" {detections.scores[index]:.2f}", canvas.width, pen),
        )
        for index in best_first(detections.scores)
        for label in [int(detections.labels[index])]
    ]
    counts = Counter(detections.labels.tolist())
    truth = []
    if ground_truth is not None:
        truth = [
            Mark(_rectangle(box, scale, canvas.size), class_colour(int(label)), "")
            for box, label in zip(*ground_truth, strict=True)
        ]
        counts.update({int(label): 0 for label in ground_truth[1]})
    legend = [
        class_legend(f"{counts[label]} {class_names[label]}", label, canvas.width // 2, pen)
        for label in sorted(counts)
    ]
    if ground_truth is not None:
        legend.append(ground_truth_legend(len(truth), pen))
    if not legend:
        legend.append(legend_item("0 detections", "", pen)[0])
    draw_marks(canvas, marks, truth, pen)
    return np.asarray(with_legend(canvas, legend))


def save_picture(path: Path, image: UInt8[ndarray, "H W 3"]) -> None:
    """Write an RGB picture in the format of its name's ending.

    Raises:
      UserError: an ending that names no format, or a path that cannot be written.
    """
    with writing(f"picture {path}"):
        try:
            Image.fromarray(image).save(path)
        except ValueError:
            raise UserError(
                f"picture {path}: '{path.suffix}' is no picture format; use .png"
            ) from None


def _enlarge(image: UInt8[ndarray, "H W 3"]) -> tuple[Image.Image, float]:
    """Return the picture with a long side of at least `MIN_LONG_SIDE`, and the factor."""
    scale = max(1.0, MIN_LONG_SIDE / max(image.shape[:2]))
    canvas = Image.fromarray(image)
    if scale > 1:
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        canvas = canvas.resize(size, Image.Resampling.BICUBIC)
    return canvas, scale


def _rectangle(box: Any, scale: float, size: tuple[int, int]) -> Rectangle:
    """Return a box in whole pixels of the canvas, with both corners inside it."""
    width, height = size
    left, top, right, bottom = (round(float(value) * scale) for value in box)
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return left, top, min(max(right - 1, left), width - 1), min(max(bottom - 1, top), height - 1)


def _score_colours(count: int, scores: Float[ndarray, " n"] | None) -> list[Colour]:
    if scores is None:
        return [viridis(1.0)] * count
    low, high = (scores.min(), scores.max()) if count else (0.0, 1.0)
    return [viridis((score - low) / (high - low) if high > low else 1.0) for score in scores]
