"""Count what a dataset contains, and how well the anchors fit its boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from rpn_jax.config import CANVAS_MULTIPLE, AnchorConfig, DataConfig
from rpn_jax.data.dataset import Dataset, Picture, training_boxes
from rpn_jax.data.transforms import resized_sizes
from rpn_jax.ops.anchors import base_anchors

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64

REACHED_IOU = 0.5
REACH = "boxes that no anchor reaches"
SIZE_EDGES = (0, 8, 16, 32, 64, 128, 256, 512, np.inf)
"""Edges of the size classes: square root of a box's area in the resized picture, pixels."""
QUANTILES = {"least": 0.0, "median": 0.5, "most": 1.0}


def dataset_statistics(
    dataset: Dataset, config: DataConfig, anchors: AnchorConfig | None
) -> dict[str, Any]:
    """Return counts and distributions of a dataset, as values that JSON can hold.

    Args:
      dataset: pictures with their ground truth.
      config: sets the size that pictures are resized to.
      anchors: anchors to compare with the boxes, or None.
    """
    pictures = dataset.pictures
    sizes = np.array([(picture.height, picture.width) for picture in pictures]).reshape(-1, 2)
    boxes = [training_boxes(picture) for picture in pictures]
    counts = np.array([len(labels) for _, labels in boxes])
    labels = np.concatenate([labels for _, labels in boxes]) if boxes else np.zeros(0, np.int32)
    by_class = np.bincount(labels, minlength=len(dataset.class_names)).tolist()
    statistics: dict[str, Any] = {
        "pictures": len(pictures),
        "pictures without boxes": int((counts == 0).sum()),
        "boxes": int(counts.sum()),
        "boxes a picture": _quantiles(counts),
        "picture sizes (width x height)": dict(
            Counter(f"{width}x{height}" for height, width in sizes.tolist()).most_common(5)
        ),
        "aspect ratio (width / height)": _quantiles(sizes[:, 1] / np.maximum(sizes[:, 0], 1)),
        "boxes of each class": dict(zip(dataset.class_names, by_class, strict=True)),
    }
    if anchors is not None and counts.sum():
        boxes_xyxy, ious = resized_anchor_ious(pictures, config.scale, anchors)
        statistics[REACH] = _unreached_by_size(boxes_xyxy, ious)
    return statistics


def resized_anchor_ious(
    pictures: Sequence[Picture], scale: tuple[int, int], anchors: AnchorConfig
) -> tuple[Float64[np.ndarray, "M 4"], Float64[np.ndarray, " M"]]:
    """Return the boxes to train on, xyxy in resized pixels, and the IoU with their best anchors.

    Args:
      pictures: pictures with their ground truth.
      scale: largest (long side, short side) of a resized picture, pixels.
      anchors: strides, sizes and shapes of the anchors.
    """
    sizes = np.array([(picture.height, picture.width) for picture in pictures]).reshape(-1, 2)
    boxes = [training_boxes(picture)[0] for picture in pictures]
    counts = [len(each) for each in boxes]
    resized = resized_sizes(sizes, scale)
    factors = np.tile((resized / sizes)[:, ::-1], 2).repeat(counts, axis=0)
    boxes_xyxy = np.concatenate([np.zeros((0, 4)), *boxes]) * factors
    return boxes_xyxy, best_anchor_ious(boxes_xyxy, resized.repeat(counts, axis=0), anchors)


def best_anchor_ious(
    boxes_xyxy: Float64[np.ndarray, "M 4"],
    image_sizes: Int64[np.ndarray, "M 2"],
    anchors: AnchorConfig,
) -> Float64[np.ndarray, " M"]:
    """Return the IoU of each box with its best anchor.

    For an anchor of a given size, the overlap along an axis falls with the distance of the centres,
    so the best one lies in the cell that is nearest to the box's centre.

    Args:
      boxes_xyxy: boxes in resized pixels.
      image_sizes: (height, width) of each box's resized picture, pixels.
      anchors: strides, sizes and shapes of the anchors.
    """
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    centres = (boxes_xyxy[:, 2:] + boxes_xyxy[:, :2]) / 2
    padded_wh = -(-image_sizes[:, ::-1] // CANVAS_MULTIPLE) * CANVAS_MULTIPLE
    best = np.zeros(len(boxes_xyxy))
    for stride in anchors.strides:
        last_cell = -(-padded_wh // stride) - 1
        cells = np.clip(np.rint(centres / stride), 0, last_cell) * stride
        for anchor in base_anchors(stride, anchors.scales, anchors.ratios).astype(np.float64):
            low = np.maximum(cells + anchor[:2], boxes_xyxy[:, :2])
            high = np.minimum(cells + anchor[2:], boxes_xyxy[:, 2:])
            overlap = np.maximum(high - low, 0).prod(axis=1)
            union = sides.prod(axis=1) + (anchor[2:] - anchor[:2]).prod() - overlap
            best = np.maximum(best, overlap / union)
    return best


def _unreached_by_size(
    boxes_xyxy: Float64[np.ndarray, "M 4"], ious: Float64[np.ndarray, " M"]
) -> list[dict[str, Any]]:
    """Return for each size class the number of boxes, and of those below `REACHED_IOU`."""
    sizes = np.sqrt((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1))
    rows = []
    for low, high in pairwise(SIZE_EDGES):
        inside = (sizes >= low) & (sizes < high)
        if inside.any():
            name = f"{low} to {high} px" if np.isfinite(high) else f"{low} px or more"
            unreached = int((ious[inside] < REACHED_IOU).sum())
            rows.append({"size": name, "boxes": int(inside.sum()), "unreached": unreached})
    return rows


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    return {name: round(float(np.quantile(values, q)), 3) for name, q in QUANTILES.items()}
