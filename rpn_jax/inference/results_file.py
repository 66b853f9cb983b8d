"""Read and write the proposals and detections of pictures in COCO results format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np

from rpn_jax.errors import UserError, reading
from rpn_jax.files import written_whole
from rpn_jax.inference.results import (
    PictureDetections,
    PictureProposals,
    best_first,
    to_xywh,
)

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy import ndarray

PROPOSALS_FILE = "proposals.json"
DETECTIONS_FILE = "detections.json"
PROPOSAL_CATEGORY = 1
"""Category of all proposals in a results file. Proposals have no class."""

ROW = '{"image_id": %d, "category_id": %d, "bbox": [%.9g, %.9g, %.9g, %.9g], "score": %.9g}'
"""An entry of a results file. A float32 has a precision of nine digits."""


def read_results(path: Path) -> list[PictureProposals]:
    """Read proposals from a file in COCO results format. The categories are ignored.

    Raises:
      UserError: the file cannot be read or is not in that format.
    """
    return [
        PictureProposals(image_id, *_boxes_and_scores(rows))
        for image_id, rows in _read_by_picture(path, list[_Result]).items()
    ]


def read_detections(path: Path, category_ids: Sequence[int]) -> list[PictureDetections]:
    """Read detections from a file in COCO results format.

    Args:
      path: JSON file, such as `write_detections` writes.
      category_ids: category of each class, as in the dataset.

    Raises:
      UserError: the file cannot be read, is not in that format, or contains another category.
    """
    label_of = {category: label for label, category in enumerate(category_ids)}
    by_picture = _read_by_picture(path, list[_ResultWithCategory])
    for rows in by_picture.values():
        for row in rows:
            if row.category_id not in label_of:
                raise UserError(
                    f"results {path}: image {row.image_id} has a detection of category "
                    f"{row.category_id}, which the dataset does not have. Its categories are "
                    f"{_some(category_ids)}."
                )
    return [
        PictureDetections(
            image_id,
            *_boxes_and_scores(rows),
            np.array([label_of[row.category_id] for row in rows], np.int32),
        )
        for image_id, rows in by_picture.items()
    ]


def write_results(path: Path, pictures: Iterable[PictureProposals]) -> None:
    """Write proposals in COCO results format: bbox xywh in pixels, best first, `PROPOSAL_CATEGORY`.

    A picture is written before the next one is requested. A failure leaves the previous file.

    Raises:
      UserError: the path cannot be written.
    """
    write_rows(path, (row for picture in pictures for row in proposal_rows(picture)))


def write_detections(
    path: Path, pictures: Iterable[PictureDetections], category_ids: Sequence[int]
) -> None:
    """Write detections in COCO results format: bbox xywh in pixels, best first.

    A picture is written before the next one is requested. A failure leaves the previous file.

    Args:
      path: JSON file.
      pictures: detections of each picture.
      category_ids: category of each class, as in the dataset.

    Raises:
      UserError: the path cannot be written.
    """
    write_rows(path, (row for picture in pictures for row in detection_rows(picture, category_ids)))


def proposal_rows(picture: PictureProposals) -> list[str]:
    """Return the proposals of a picture as the JSON texts of a results file, best first."""
    return _rows(picture, np.full(len(picture.scores), PROPOSAL_CATEGORY))


def detection_rows(picture: PictureDetections, category_ids: Sequence[int]) -> list[str]:
    """Return the detections of a picture as the JSON texts of a results file, best first."""
    return _rows(picture, np.array(category_ids)[picture.labels])


def proposals_of_rows(image_id: int, rows: Sequence[msgspec.Raw]) -> PictureProposals:
    """Return the proposals of a picture from its `proposal_rows`."""
    return PictureProposals(image_id, *_boxes_and_scores(_decoded(rows)))


def detections_of_rows(
    image_id: int, rows: Sequence[msgspec.Raw], category_ids: Sequence[int]
) -> PictureDetections:
    """Return the detections of a picture from its `detection_rows`."""
    results = _decoded(rows)
    label_of = {category: label for label, category in enumerate(category_ids)}
    labels = np.array([label_of[result.category_id] for result in results], np.int32)
    return PictureDetections(image_id, *_boxes_and_scores(results), labels)


def write_rows(path: Path, rows: Iterable[str]) -> None:
    """Write a results file from the JSON texts of its entries.

    An entry is written before the next one is requested. A failure leaves the previous file.

    Raises:
      UserError: the path cannot be written.
    """
    with written_whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        separator = "[\n"
        for row in rows:
            file.write(separator + row)
            separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")


class _Result(msgspec.Struct, gc=False):
    image_id: int
    bbox: tuple[float, float, float, float]
    score: float


class _ResultWithCategory(_Result, gc=False):
    category_id: int


Row = TypeVar("Row", bound=_Result)


def _read_by_picture(path: Path, kind: type[list[Row]]) -> dict[int, list[Row]]:
    with reading(f"results {path}"):
        content = path.read_bytes()
    try:
        rows = msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        fields = "image_id, category_id, bbox [x, y, width, height] and score"
        raise UserError(
            f"results {path}: not COCO results, a list of objects with {fields} ({error})"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"results {path}: is not JSON ({error})") from None
    by_picture: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_picture[row.image_id].append(row)
    return by_picture


def _boxes_and_scores(
    rows: Sequence[_Result],
) -> tuple[Float[ndarray, "n 4"], Float[ndarray, " n"]]:
    boxes = np.array([row.bbox for row in rows], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([row.score for row in rows])
    return boxes.astype(np.float32), scores.astype(np.float32)


def _decoded(rows: Sequence[msgspec.Raw]) -> list[_ResultWithCategory]:
    return [msgspec.json.decode(row, type=_ResultWithCategory) for row in rows]


def _rows(
    picture: PictureProposals | PictureDetections, categories: Int[ndarray, " n"]
) -> list[str]:
    order = best_first(picture.scores)
    boxes_xywh = to_xywh(picture.boxes_xyxy)[order].tolist()
    scores, categories = picture.scores[order].tolist(), categories[order].tolist()
    return [
        ROW % (picture.image_id, category, *box, score)
        for category, box, score in zip(categories, boxes_xywh, scores, strict=True)
    ]


def _some(values: Sequence[int]) -> str:
    """Return the first values as text."""
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
