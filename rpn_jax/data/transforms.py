"""Pictures and boxes to a canvas: resize, flip, pad (the reference's pixel arithmetic)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8


def resized_size(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that fits a picture into ``scale``, keeping its ratio.

    Args:
      height: pixels.
      width: pixels.
      scale: (long, short) sides to fit in, pixels.
    """
    long, short = scale
    factor = min(long / max(height, width), short / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def scale_factors(
    old_size: tuple[int, int], new_size: tuple[int, int]
) -> Float32[np.ndarray, " 2"]:
    """(width, height) factors from an original to a resized (height, width)."""
    return np.array([new_size[1] / old_size[1], new_size[0] / old_size[0]], np.float32)


def resize(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Resize to (height, width) with OpenCV's bilinear filter, without antialiasing."""
    import cv2

    height, width = size
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def resize_boxes(
    boxes_xyxy: Float32[np.ndarray, "G 4"],
    factors: Float32[np.ndarray, " 2"],
    size: tuple[int, int],
) -> Float32[np.ndarray, "G 4"]:
    """Boxes in pixels of the resized picture, cut at its border against rounding."""
    height, width = size
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(boxes_xyxy * np.tile(factors, 2), 0, limits)


def flip(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Mirror left and right."""
    return image[:, ::-1]


def flip_boxes(boxes_xyxy: Float32[np.ndarray, "G 4"], width: int) -> Float32[np.ndarray, "G 4"]:
    """Mirror boxes in a picture of ``width`` pixels: x1' = width - x2."""
    x1, y1, x2, y2 = boxes_xyxy.T
    return np.stack([width - x2, y1, width - x1, y2], axis=1)


def pad_to(
    image: UInt8[np.ndarray, "h w 3"], canvas: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """Put a picture in the upper left of a canvas (height, width) of zeros."""
    padded = np.zeros((*canvas, 3), np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded
