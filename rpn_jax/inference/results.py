"""The proposals of single pictures, and their files in COCO results format."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rpn_jax.errors import UserError
from rpn_jax.files import read_json, written_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Float, Int
    from numpy import ndarray

    from rpn_jax.structures import Proposals


@dataclass(frozen=True)
class PictureProposals:
    """The proposals of one picture, in its original pixels."""

    image_id: int
    """The picture's id in the annotations."""
    boxes_xyxy: Float[ndarray, "n 4"]
    """float32 pixels."""
    scores: Float[ndarray, " n"]
    """float32."""


def picture_proposals(image_ids: Sequence[int], proposals: Proposals) -> list[PictureProposals]:
    """The valid proposals of a batch, one entry a picture.

    Args:
      image_ids: an id for each of the first pictures of the batch; later ones only fill it up.
      proposals: as `rpn_jax.propose` returns them, in original pixels.
    """
    boxes, scores, valid = (
        np.asarray(array) for array in (proposals.boxes, proposals.scores, proposals.valid)
    )
    return [
        PictureProposals(image_id, boxes[row][valid[row]], scores[row][valid[row]])
        for row, image_id in enumerate(image_ids)
    ]


def read_results(path: Path) -> list[PictureProposals]:
    """Read a file in COCO results format, as `write_results` writes it.

    Raises:
      UserError: a file that cannot be read or is not in that format.
    """
    results = read_json(path)
    try:
        rows = [
            (result["image_id"], [*map(float, result["bbox"])], float(result["score"]))
            for result in results
        ]
        if any(len(box) != 4 for _, box, _ in rows):
            raise ValueError("a bbox without 4 numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"results {path}: not COCO results, a list of objects with image_id, bbox "
            f"[x, y, width, height] and score ({error})"
        ) from None
    by_image: dict[int, list[tuple[list[float], float]]] = defaultdict(list)
    for image_id, box, score in rows:
        by_image[image_id].append((box, score))
    return [_picture_of_rows(image_id, found) for image_id, found in by_image.items()]


def write_results(path: Path, pictures: Iterable[PictureProposals]) -> None:
    """Write proposals in COCO results format: category_id 1, bbox xywh in pixels, best first.

    The file appears whole or not at all.

    Raises:
      UserError: a path that cannot be written.
    """
    with written_whole(path) as temporary, open(temporary, "w") as file:
        separator = "[\n"
        for picture in pictures:
            for result in _results_of_picture(picture):
                file.write(separator + json.dumps(result))
                separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")


def best_first(scores: Float[ndarray, " n"]) -> Int[ndarray, " n"]:
    """Positions in the order of falling scores; equal ones keep theirs."""
    return np.argsort(-scores, kind="stable")


def to_xywh(boxes_xyxy: Float[ndarray, "n 4"]) -> Float[ndarray, "n 4"]:
    """Corners to x, y, width and height, as COCO writes boxes; float64."""
    boxes = boxes_xyxy.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _results_of_picture(picture: PictureProposals) -> list[dict[str, Any]]:
    best = best_first(picture.scores)
    return [
        {
            "image_id": int(picture.image_id),
            "category_id": 1,
            "bbox": [_short(value) for value in box],
            "score": _short(score),
        }
        for box, score in zip(to_xywh(picture.boxes_xyxy)[best], picture.scores[best], strict=True)
    ]


def _short(value: float) -> float:
    """Nine digits, which is all that a float32 holds."""
    return float(f"{value:.9g}")


def _picture_of_rows(image_id: int, rows: list[tuple[list[float], float]]) -> PictureProposals:
    boxes = np.array([box for box, _ in rows])
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([score for _, score in rows])
    return PictureProposals(image_id, boxes.astype(np.float32), scores.astype(np.float32))
