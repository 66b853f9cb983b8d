"""RoIAlign as loops over bins and samples, in float32 and in the reference's order."""

import numpy as np

ONE = np.float32(1)


def roi_align(features: np.ndarray, box_xyxy: np.ndarray, stride: int, size: int) -> np.ndarray:
    """Pool one box [4] from one map [H, W, C]; returns [size, size, C]."""
    height, width, channels = features.shape
    x1, y1, x2, y2 = (np.float32(c) / np.float32(stride) - np.float32(0.5) for c in box_xyxy)
    rows = [_samples(y1, y2, p, size) for p in range(size)]
    columns = [_samples(x1, x2, q, size) for q in range(size)]
    pooled = np.zeros((size, size, channels), np.float32)
    for p in range(size):
        for q in range(size):
            total = np.zeros(channels, np.float32)
            for y in rows[p]:
                for x in columns[q]:
                    if -1 <= y <= height and -1 <= x <= width:
                        total += _bilinear(features, y, x)
            pooled[p, q] = total / np.float32(max(len(rows[p]) * len(columns[q]), 1))
    return pooled


def _samples(start: np.float32, end: np.float32, bin_: int, size: int) -> list[np.float32]:
    bin_size = (end - start) / np.float32(size)
    count = int(np.ceil(bin_size))
    return [
        start + np.float32(bin_) * bin_size + np.float32(k + 0.5) * bin_size / np.float32(count)
        for k in range(count)
    ]


def _bilinear(features: np.ndarray, y: np.float32, x: np.float32) -> np.ndarray:
    (top, bottom, down), (left, right, across) = (
        _neighbours(t, length) for t, length in zip((y, x), features.shape[:2], strict=True)
    )
    return (
        (ONE - down) * (ONE - across) * features[top, left]
        + (ONE - down) * across * features[top, right]
        + down * (ONE - across) * features[bottom, left]
        + down * across * features[bottom, right]
    )


def _neighbours(t: np.float32, length: int) -> tuple[int, int, np.float32]:
    t = max(t, np.float32(0))
    low = int(t)
    if low >= length - 1:
        return length - 1, length - 1, np.float32(0)
    return low, low + 1, t - np.float32(low)
