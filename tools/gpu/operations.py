"""Section 'operations': operations on this device against their CPU forms.

On a CPU the second side runs the forms for GPUs, so that they are compared there too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rpn_jax.benchmark.figures import Row
from rpn_jax.benchmark.inputs import chained_boxes, equal_boxes, make_boxes, make_pictures
from rpn_jax.config import load_config
from rpn_jax.ops import (
    assign_anchors,
    grid_anchors,
    masked_top_k,
    nms,
    nms_per_class,
    resize_bilinear,
    roi_align,
    sample_anchors,
)
from tools.gpu.forms import use_default_forms

NMS_IOU = 0.7
CLASSES, CLASS_NMS_IOU, DETECTIONS = 20, 0.5, 100
ROI_STRIDES, ROI_BINS = (4, 8, 16, 32), 7
ROUNDED_DIVISION = 1e-4
"""Share of the entries that may differ where an IoU is compared with a threshold: NVIDIA's float32
division is not rounded to the nearest value, so an IoU can fall on the other side."""


@dataclass(frozen=True)
class Comparison:
    """An operation with its inputs."""

    name: str
    function: Callable[..., Any]
    inputs: tuple[Any, ...]
    tolerance: float
    """Largest difference of an entry that counts as equal."""
    share: float
    """Largest share of the entries that may differ by more."""


def rows(small: bool, tiny: bool) -> Iterator[Row]:
    """Yield a row for each operation."""
    strides = ROI_STRIDES[:2] if tiny else ROI_STRIDES
    comparisons = _comparisons(4 if tiny else 2 if small else 1, strides)
    (cpu, *_) = jax.local_devices(backend="cpu")
    expected = [_run(comparison, cpu) for comparison in comparisons]
    if jax.default_backend() == "cpu":
        use_default_forms()
    for comparison, reference in zip(comparisons, expected, strict=True):
        yield _row(comparison, reference, _run(comparison, jax.local_devices()[0]))


def _run(comparison: Comparison, device: jax.Device) -> np.ndarray:
    """Return all results of the operation, joined into one array."""
    # A new function each time: JAX would return the program that it compiled with other forms.
    function = jax.jit(lambda *inputs: comparison.function(*inputs))
    results = jax.tree.leaves(function(*jax.device_put(comparison.inputs, device)))
    return np.concatenate([np.asarray(result, np.float64).reshape(-1) for result in results])


def _row(comparison: Comparison, reference: np.ndarray, found: np.ndarray) -> Row:
    difference = np.abs(found - reference)
    different = int(np.count_nonzero(~(difference <= comparison.tolerance)))
    return {
        "operation": comparison.name,
        "entries": found.size,
        "largest_difference": float(difference.max()),
        "different": different,
        "may_differ": int(comparison.share * found.size),
        "passed": different <= comparison.share * found.size,
    }


def _comparisons(divisor: int, roi_strides: tuple[int, ...]) -> list[Comparison]:
    """Return all operations with inputs whose sizes are divided by ``divisor``."""
    rng = np.random.default_rng(0)
    height, width = 768 // divisor, 1344 // divisor // 32 * 32
    config = load_config("rpn_r50_fpn_1x_coco")
    levels = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32, 64)]
    anchors = np.concatenate(grid_anchors(levels, config.model.rpn.anchors))
    boxes = make_boxes(12, (height, width), seed=0)
    inside = np.ones(len(anchors), bool)
    loss = config.rpn_loss
    thresholds = (loss.positive_iou, loss.negative_iou, loss.min_positive_iou)
    labels = np.where(rng.random(len(anchors)) < 0.01, 1, rng.integers(-2, 1, len(anchors)))
    logits = rng.normal(size=(2, len(anchors))).round(2).astype(np.float32)  # with equal ones
    count = 2000 // divisor
    ordinary = make_boxes(count, (height, width), seed=1)
    scores = rng.random(count).astype(np.float32)
    # Each box suppresses the next one: as many rounds as boxes, so fewer of them.
    chain = chained_boxes(count // 4)
    pictures = make_pictures(2, (480 // divisor, 640 // divisor), seed=0)
    old = np.array([pictures.shape[1:3], (300 // divisor, 500 // divisor)], np.int32)
    new = np.array([(height, width), (height // 2, width // 3)], np.int32)

    def match(anchors: jax.Array, valid: jax.Array, boxes: jax.Array, mask: jax.Array) -> Any:
        return assign_anchors(anchors, valid, boxes, mask, *thresholds)

    def sample(labels: jax.Array, key: jax.Array) -> Any:
        return sample_anchors(labels, key, loss.samples_per_image, loss.positive_fraction)

    def suppress(boxes: jax.Array, scores: jax.Array) -> Any:
        return nms(boxes, scores, jnp.ones(scores.shape, bool), NMS_IOU)

    def resize(pictures: jax.Array, old: jax.Array, new: jax.Array) -> Any:
        mirrored = jnp.array([False, True])
        return resize_bilinear(pictures, old, new, mirrored, (height, width))

    def suppress_classes(boxes: jax.Array, scores: jax.Array) -> Any:
        return nms_per_class(boxes, scores, scores > 0.05, CLASS_NMS_IOU, DETECTIONS)

    def pool(levels: tuple[jax.Array, ...], boxes: jax.Array) -> Any:
        return roi_align(levels, boxes, roi_strides, ROI_BINS)

    def pool_gradient(levels: tuple[jax.Array, ...], boxes: jax.Array, cotangent: jax.Array) -> Any:
        _, backward = jax.vjp(lambda levels: pool(levels, boxes), levels)
        return backward(cotangent)

    maps = tuple(
        rng.normal(size=(1, rows, columns, 16)).astype(np.float32)
        for rows, columns in levels[: len(roi_strides)]
    )
    regions = make_boxes(256 // divisor, (height, width), seed=2)[None]
    class_boxes = make_boxes(count // 4 * CLASSES, (height, width), seed=3)
    class_boxes = class_boxes.reshape(-1, CLASSES, 4)
    class_scores = rng.random(class_boxes.shape[:2]).astype(np.float32)
    cotangent = rng.uniform(-1, 1, (1, regions.shape[1], ROI_BINS, ROI_BINS, 16))
    cotangent = cotangent.astype(np.float32)
    falling = np.linspace(1, 0, count, dtype=np.float32)
    return [
        Comparison(
            "matching",
            match,
            (anchors, inside, boxes, np.ones(len(boxes), bool)),
            0,
            ROUNDED_DIVISION,
        ),
        Comparison("sampling", sample, (labels.astype(np.int32), jax.random.key(0)), 0, 0),
        Comparison("top-k", lambda x: masked_top_k(x, x > -9, count), (logits,), 0, 0),
        Comparison("NMS, ordinary boxes", suppress, (ordinary, scores), 0, 10 * ROUNDED_DIVISION),
        Comparison("NMS, equal boxes", suppress, (equal_boxes(count), falling), 0, 0),
        Comparison("NMS, a chain", suppress, (chain, falling[: len(chain)]), 0, 0),
        Comparison("NMS of classes", suppress_classes, (class_boxes, class_scores), 0, 0.01),
        Comparison("RoIAlign", pool, (maps, regions), 1e-4, ROUNDED_DIVISION),
        Comparison(
            "RoIAlign, gradient",
            pool_gradient,
            (maps, regions, cotangent),
            1e-3,
            ROUNDED_DIVISION,
        ),
        Comparison("resizing", resize, (pictures, old, new), 0, 0),
    ]
