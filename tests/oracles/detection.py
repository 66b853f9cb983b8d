"""Plain NumPy loops for every operation, written from the definitions and slow on purpose.

All arithmetic is float32 in the reference's order, so that results can be compared bit for bit.
"""

from __future__ import annotations

import numpy as np

F = np.float32


def area(box: np.ndarray) -> np.float32:
    return F(max(F(box[2] - box[0]), F(0)) * max(F(box[3] - box[1]), F(0)))


def iou(a: np.ndarray, b: np.ndarray) -> np.float32:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), F(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]), F(0))
    overlap = F(width * height)
    return F(overlap / max(F(F(area(a) + area(b)) - overlap), F(1e-6)))


def iou_table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([[iou(x, y) for y in b] for x in a], F).reshape(len(a), len(b))


def base_anchors(stride: int, scales: tuple, ratios: tuple) -> np.ndarray:
    """In float64, from the definition: area (stride * scale)^2, ratio height / width."""
    boxes: list = []
    for ratio in ratios:
        for scale in scales:
            width = stride * scale / np.sqrt(ratio)
            height = width * ratio
            boxes.append([-width / 2, -height / 2, width / 2, height / 2])
    return np.array(boxes)


def grid_anchors(shape: tuple[int, int], stride: int, scales: tuple, ratios: tuple) -> np.ndarray:
    base = base_anchors(stride, scales, ratios)
    boxes: list = []
    for row in range(shape[0]):
        for column in range(shape[1]):
            shift = np.array([column, row, column, row]) * stride
            boxes.extend(anchor + shift for anchor in base)
    return np.array(boxes)


def encode(anchor: np.ndarray, box: np.ndarray) -> list[float]:
    anchor, box = anchor.astype(np.float64), box.astype(np.float64)
    widths = anchor[2] - anchor[0], box[2] - box[0]
    heights = anchor[3] - anchor[1], box[3] - box[1]
    return [
        ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / widths[0],
        ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / heights[0],
        np.log(widths[1] / widths[0]),
        np.log(heights[1] / heights[0]),
    ]


def decode(anchor: np.ndarray, delta: np.ndarray) -> list[float]:
    anchor, delta = anchor.astype(np.float64), delta.astype(np.float64)
    limit = abs(np.log(16 / 1000))
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = (anchor[0] + anchor[2]) / 2 + width * delta[0]
    y = (anchor[1] + anchor[3]) / 2 + height * delta[1]
    width *= np.exp(min(max(delta[2], -limit), limit))
    height *= np.exp(min(max(delta[3], -limit), limit))
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def assign(
    anchors: np.ndarray,
    valid: np.ndarray,
    boxes: np.ndarray,
    mask: np.ndarray,
    positive_iou: float = 0.7,
    negative_iou: float = 0.3,
    min_positive_iou: float = 0.3,
) -> np.ndarray:
    """The reference's MaxIoUAssigner, on the anchors and boxes that exist only."""
    anchor_rows, box_rows = np.flatnonzero(valid), np.flatnonzero(mask)
    labels = np.full(len(anchors), -2, np.int32)
    labels[anchor_rows] = 0
    if len(anchor_rows) == 0 or len(box_rows) == 0:
        return labels
    table = iou_table(boxes[box_rows], anchors[anchor_rows])
    for column, row in enumerate(anchor_rows):
        best = table[:, column].max()
        if best >= F(positive_iou):
            labels[row] = box_rows[table[:, column].argmax()] + 1
        elif best >= F(negative_iou):
            labels[row] = -1
    for overlaps, box_row in zip(table, box_rows, strict=True):
        if overlaps.max() >= F(min_positive_iou):
            labels[anchor_rows[overlaps == overlaps.max()]] = box_row + 1
    return labels


def nms(boxes: np.ndarray, scores: np.ndarray, valid: np.ndarray, threshold: float) -> np.ndarray:
    keep = np.zeros(len(boxes), bool)
    for i in np.argsort(-scores, kind="stable"):
        if valid[i]:
            keep[i] = all(iou(boxes[j], boxes[i]) <= F(threshold) for j in np.flatnonzero(keep))
    return keep


def losses(
    logits: np.ndarray,
    deltas: np.ndarray,
    anchors: np.ndarray,
    labels: np.ndarray,
    boxes: np.ndarray,
) -> tuple[float, float, int]:
    """Summed cross-entropy, summed L1 and the count, of one picture with every anchor sampled."""
    cross_entropy = box_error = 0.0
    for logit, delta, anchor, label in zip(logits, deltas, anchors, labels, strict=True):
        if label >= 0:
            sign = -1.0 if label > 0 else 1.0
            cross_entropy += np.logaddexp(0.0, sign * np.float64(logit))
        if label > 0:
            box_error += np.abs(delta - np.array(encode(anchor, boxes[label - 1]))).sum()
    count = max(int((labels > 0).sum()), 1) + max(int((labels == 0).sum()), 1)
    return float(cross_entropy), float(box_error), count


def propose(
    levels: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
    image_size: tuple[int, int],
    factors: tuple[float, float],
    nms_pre: int,
    nms_iou: float,
    max_proposals: int,
    min_size: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores of one picture. A level is (logits, deltas, anchors, valid), all flat."""
    found: list = []
    for logits, deltas, anchors, valid in levels:
        rows = [i for i in np.argsort(-logits, kind="stable") if valid[i]][:nms_pre]
        boxes = np.array([decode(anchors[i], deltas[i]) for i in rows], F).reshape(-1, 4)
        boxes[:, 0::2] = boxes[:, 0::2].clip(0, image_size[1]) / F(factors[0])
        boxes[:, 1::2] = boxes[:, 1::2].clip(0, image_size[0]) / F(factors[1])
        scores = 1 / (1 + np.exp(-logits[rows].astype(np.float64)))
        big = (boxes[:, 2] - boxes[:, 0] > min_size) & (boxes[:, 3] - boxes[:, 1] > min_size)
        keep = nms(boxes, scores, big, nms_iou)
        found.extend(zip(scores[keep], boxes[keep], strict=True))
    found.sort(key=lambda entry: -entry[0])
    found = found[:max_proposals]
    return np.array([box for _, box in found]).reshape(-1, 4), np.array([s for s, _ in found])
