"""Hold the proposals and detections of single pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy import ndarray

    from rpn_jax.structures import Detections, Proposals


@dataclass(frozen=True, eq=False)
class PictureProposals:
    """The proposals of one picture, in its original pixels."""

    image_id: int
    """Id of the picture in the annotations."""
    boxes_xyxy: Float[ndarray, "n 4"]
    """float32 pixels."""
    scores: Float[ndarray, " n"]
    """float32."""

    def above(self, min_score: float) -> PictureProposals:
        """Return the proposals whose score is higher than ``min_score``."""
        kept = self.scores > min_score
        return PictureProposals(self.image_id, self.boxes_xyxy[kept], self.scores[kept])


@dataclass(frozen=True, eq=False)
class PictureDetections:
    """The detections of one picture: boxes with classes, in its original pixels."""

    image_id: int
    """Id of the picture in the annotations."""
    boxes_xyxy: Float[ndarray, "n 4"]
    """float32 pixels."""
    scores: Float[ndarray, " n"]
    """float32."""
    labels: Int[ndarray, " n"]
    """int32 class of each box, from 0: a position in the dataset's ``class_names``."""

    def best(self, count: int) -> PictureDetections:
        """Return the first ``count`` detections. They are sorted by score, the best first."""
        return PictureDetections(
            self.image_id, self.boxes_xyxy[:count], self.scores[:count], self.labels[:count]
        )


def picture_proposals(image_ids: Sequence[int], proposals: Proposals) -> list[PictureProposals]:
    """Return the valid proposals of a batch, one entry for each picture.

    Args:
      image_ids: id of each picture of the batch.
      proposals: result of `rpn_jax.propose`, in original pixels.
    """
    arrays = map(np.asarray, (proposals.boxes, proposals.scores, proposals.valid))
    return [
        PictureProposals(image_id, boxes[valid], scores[valid])
        for image_id, boxes, scores, valid in zip(image_ids, *arrays, strict=True)
    ]


def picture_detections(image_ids: Sequence[int], detections: Detections) -> list[PictureDetections]:
    """Return the valid detections of a batch, one entry for each picture.

    Args:
      image_ids: id of each picture of the batch.
      detections: result of `rpn_jax.detect`, in original pixels.
    """
    arrays = map(
        np.asarray, (detections.boxes, detections.scores, detections.labels, detections.valid)
    )
    return [
        PictureDetections(image_id, boxes[valid], scores[valid], labels[valid])
        for image_id, boxes, scores, labels, valid in zip(image_ids, *arrays, strict=True)
    ]


def best_first(scores: Float[ndarray, " n"]) -> Int[ndarray, " n"]:
    """Return the positions in the order of falling scores. Equal scores keep their order."""
    return np.argsort(-scores, kind="stable")


def to_xywh(boxes_xyxy: Float[ndarray, "n 4"]) -> Float[ndarray, "n 4"]:
    """Convert corners to float64 x, y, width and height, as COCO writes boxes."""
    boxes = boxes_xyxy.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
