"""Match detections with ground-truth boxes as COCOeval does, for all pictures at once.

COCOeval visits the detections of a picture and class by falling score. Each takes the free box with
the best IoU that reaches the threshold. Boxes that do not count (crowds, and boxes of other sizes)
are taken only if no other box is left. A crowd can be taken any number of times.

pycocotools does this in Python loops over pictures, classes, sizes and thresholds. Here one step
visits the next detection of every picture and class, for all sizes and thresholds. Most detections
overlap no box. They match nothing, so no step visits them.

Axes: A size classes (`AREA_RANGES`), T IoU thresholds, n detections in the order picture, class,
falling score; m of them overlap a box; M boxes; P pairs of a detection and a box.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.data.dataset import Objects, Picture, concatenate_objects
from rpn_jax.inference.results import PictureDetections, to_xywh

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Float64, Int32, Int64

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = {
    "all": (0, 1e10),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e10),
}
"""Smallest and largest area of each size class, square pixels. Both belong to the class."""


@dataclass(frozen=True, eq=False)
class Matches:
    """Detections and the boxes that they take."""

    labels: Int32[np.ndarray, " n"]
    """Class of each detection."""
    scores: Float32[np.ndarray, " n"]
    ranks: Int64[np.ndarray, " n"]
    """Number of better detections of the same picture and class."""
    counts_unmatched: Bool[np.ndarray, "A n"]
    """True where a detection that takes no box is wrong: its area belongs to the size class, and
    its class is annotated exhaustively in its picture."""
    overlapping: Int64[np.ndarray, " m"]
    """Positions, among all detections, of those that overlap a box. The others match nothing."""
    is_matched: Bool[np.ndarray, "A T m"]
    """True where an overlapping detection takes a box."""
    is_true: Bool[np.ndarray, "A T m"]
    """True where the box that it takes counts."""
    box_labels: Int32[np.ndarray, " M"]
    """Class of each box."""
    is_counted: Bool[np.ndarray, "A M"]
    """True where a box must be found: it is no crowd, and its area belongs to the size class."""


@dataclass(frozen=True, eq=False)
class _Ranked:
    """Detections of a picture in the order class, falling score."""

    boxes_xywh: Float64[np.ndarray, "n 4"]
    labels: Int32[np.ndarray, " n"]
    scores: Float32[np.ndarray, " n"]
    ranks: Int64[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Detections and boxes of the same picture and class that overlap enough to match."""

    detections: Int64[np.ndarray, " P"]
    boxes: Int64[np.ndarray, " P"]
    ious: Float64[np.ndarray, " P"]


def match_detections(
    pictures: Sequence[Picture], detections: Sequence[PictureDetections], limit: int
) -> Matches:
    """Match the ``limit`` best detections of each picture and class.

    Args:
      pictures: pictures with their ground truth.
      detections: at most one entry for each picture.
      limit: maxDets of COCOeval.
    """
    # COCOeval orders pictures by id. The order decides between detections with equal scores.
    pictures = sorted(pictures, key=lambda picture: picture.image_id)
    found = {each.image_id: each for each in detections}
    truth = [picture.objects for picture in pictures]
    ranked = [_rank(found.get(picture.image_id), limit) for picture in pictures]
    pairs = _overlapping_pairs(ranked, truth)

    objects = concatenate_objects(truth)
    labels = np.concatenate([np.zeros(0, np.int32), *(each.labels for each in ranked)])
    areas = np.concatenate([np.zeros(0), *(each.boxes_xywh[:, 2:].prod(axis=1) for each in ranked)])
    picture = np.repeat(np.arange(len(ranked)), [len(each.labels) for each in ranked])
    is_exhaustive = np.concatenate([np.zeros(0, bool), *map(_is_exhaustive, pictures, ranked)])
    is_counted = _is_in_range(objects.areas) & ~objects.is_crowd
    overlapping = np.unique(pairs.detections)
    turns = _turns(picture[overlapping], labels[overlapping])
    is_matched, is_true = _match(
        pairs, overlapping, turns, is_counted=is_counted, is_crowd=objects.is_crowd
    )
    return Matches(
        labels=labels,
        scores=np.concatenate([np.zeros(0, np.float32), *(each.scores for each in ranked)]),
        ranks=np.concatenate([np.zeros(0, np.int64), *(each.ranks for each in ranked)]),
        counts_unmatched=_is_in_range(areas) & is_exhaustive,
        overlapping=overlapping,
        is_matched=is_matched,
        is_true=is_true,
        box_labels=objects.labels,
        is_counted=is_counted,
    )


def coco_iou(
    boxes_xywh: Float64[np.ndarray, "n 4"],
    truth_xywh: Float64[np.ndarray, "M 4"],
    is_crowd: Bool[np.ndarray, " M"],
) -> Float64[np.ndarray, "n M"]:
    """Return the IoU of all pairs, in pycocotools' order of operations.

    A crowd is compared with the part of the detection that it covers: its overlap is divided by the
    detection's own area.
    """
    found, truth = boxes_xywh[:, None], truth_xywh[None]
    high = np.minimum(found[..., :2] + found[..., 2:], truth[..., :2] + truth[..., 2:])
    sides = np.maximum(high - np.maximum(found[..., :2], truth[..., :2]), 0)
    overlap = sides[..., 0] * sides[..., 1]
    areas, truth_areas = (boxes[..., 2] * boxes[..., 3] for boxes in (found, truth))
    union = np.where(is_crowd, areas, areas + truth_areas - overlap)
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0)


def _rank(found: PictureDetections | None, limit: int) -> _Ranked:
    if found is None:
        found = PictureDetections(
            0, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
        )
    order = np.lexsort((-found.scores, found.labels))
    labels = found.labels[order]
    ranks = np.arange(len(labels)) - np.searchsorted(labels, labels)
    best = ranks < limit
    order = order[best]
    return _Ranked(to_xywh(found.boxes_xyxy[order]), labels[best], found.scores[order], ranks[best])


def _is_exhaustive(picture: Picture, found: _Ranked) -> Bool[np.ndarray, " n"]:
    """Return for each detection whether all objects of its class are annotated in its picture."""
    if picture.verified is None:
        return np.ones(len(found.labels), bool)
    return ~np.isin(found.labels, picture.verified.not_exhaustive)


def _overlapping_pairs(ranked: Sequence[_Ranked], truth: Sequence[Objects]) -> _Pairs:
    """Return the pairs of all pictures, with positions among all detections and all boxes."""
    detections, boxes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    ious = [np.zeros(0)]
    first_detection, first_box = 0, 0
    for found, objects in zip(ranked, truth, strict=True):
        of_picture = coco_iou(found.boxes_xywh, objects.boxes_xywh, objects.is_crowd)
        is_same_class = found.labels[:, None] == objects.labels
        rows, columns = np.nonzero((of_picture >= IOU_THRESHOLDS[0]) & is_same_class)
        detections.append(first_detection + rows)
        boxes.append(first_box + columns)
        ious.append(of_picture[rows, columns])
        first_detection += len(found.labels)
        first_box += len(objects.labels)
    return _Pairs(np.concatenate(detections), np.concatenate(boxes), np.concatenate(ious))


def _is_in_range(areas: Float64[np.ndarray, " k"]) -> Bool[np.ndarray, "A k"]:
    low, high = np.array(list(AREA_RANGES.values())).T[..., None]
    return (areas >= low) & (areas <= high)


def _turns(
    pictures: Int64[np.ndarray, " m"], labels: Int32[np.ndarray, " m"]
) -> Int64[np.ndarray, " m"]:
    """Return the place of each detection in the queue of its picture and class, from 0."""
    positions = np.arange(len(labels))
    is_first = np.ones(len(labels), bool)
    is_first[1:] = (pictures[1:] != pictures[:-1]) | (labels[1:] != labels[:-1])
    return positions - np.maximum.accumulate(np.where(is_first, positions, 0))


def _match(
    pairs: _Pairs,
    overlapping: Int64[np.ndarray, " m"],
    turns: Int64[np.ndarray, " m"],
    *,
    is_counted: Bool[np.ndarray, "A M"],
    is_crowd: Bool[np.ndarray, " M"],
) -> tuple[Bool[np.ndarray, "A T m"], Bool[np.ndarray, "A T m"]]:
    """Return for each overlapping detection whether it takes a box, and one that counts."""
    shape = (len(is_counted), len(IOU_THRESHOLDS))
    is_taken = np.zeros((*shape, len(is_crowd)), bool)
    is_matched = np.zeros((*shape, len(overlapping)), bool)
    is_true = np.zeros_like(is_matched)
    for detections, starts, boxes, ious in _steps(pairs, overlapping, turns):
        can_match = ~is_taken[..., boxes] & (ious >= IOU_THRESHOLDS[:, None])
        # The pairs of a detection come by rising IoU, so the last one that can match is the best.
        # A box that counts comes before all others.
        places = np.arange(1, len(boxes) + 1)
        preference = places + len(boxes) * is_counted[:, None, boxes]
        best = np.maximum.reduceat(np.where(can_match, preference, 0), starts, axis=2)
        size, threshold, _ = np.nonzero(best)
        taken = boxes[(best[best > 0] - 1) % len(boxes)]
        is_taken[size, threshold, taken] = ~is_crowd[taken]
        is_matched[..., detections] = best > 0
        is_true[..., detections] = best > len(boxes)
    return is_matched, is_true


def _steps(
    pairs: _Pairs, overlapping: Int64[np.ndarray, " m"], turns: Int64[np.ndarray, " m"]
) -> Iterator[
    tuple[
        Int64[np.ndarray, " d"],
        Int64[np.ndarray, " d"],
        Int64[np.ndarray, " p"],
        Float64[np.ndarray, " p"],
    ]
]:
    """Yield the detections of each turn with their pairs.

    Yields:
      The positions of the turn's detections in ``overlapping``, the first pair of each, and the box
      and the IoU of each pair. The pairs of a detection come by rising IoU.
    """
    detections = np.searchsorted(overlapping, pairs.detections)
    order = np.lexsort((pairs.ious, detections, turns[detections]))
    detections, boxes, ious = detections[order], pairs.boxes[order], pairs.ious[order]
    ends = np.cumsum(np.bincount(turns[detections]))
    for start, end in itertools.pairwise([0, *ends]):
        unique, starts = np.unique(detections[start:end], return_index=True)
        yield unique, starts, boxes[start:end], ious[start:end]
