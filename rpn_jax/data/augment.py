"""Random changes to training pictures: photometric jitter, large-scale jitter and random crops.

A picture's changes are a pure function of its `Augmentation`, whose seed names the run, the epoch
and the place in the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, UInt8

    from rpn_jax.config import DataConfig

CROP_ATTEMPTS = 20
"""Number of windows to try until one contains a part of a box."""
BRIGHTNESS = 32.0
"""Largest shift of the brightness, grey levels. This and the next three are the reference's."""
CONTRAST = SATURATION = (0.5, 1.5)
"""Smallest and largest factor."""
HUE = 18.0
"""Largest shift of the hue, degrees of 360."""

Window = tuple[int, int, int, int]
"""(top, left, height, width) of a part of a picture, pixels."""


@dataclass(frozen=True)
class Augmentation:
    """The random changes of one picture."""

    seed: tuple[int, ...]
    """Seed of all random numbers of the picture."""
    photometric: bool
    """Change brightness, contrast, saturation and hue."""
    largest_crop: tuple[int, int]
    """(height, width) that a cropped picture has at most, pixels."""
    crop_share: float
    """Smallest share of ``largest_crop`` that a random crop keeps. 1 crops to it exactly."""


def is_augmented(config: DataConfig) -> bool:
    """Return whether training changes pictures by more than the flip and the short side."""
    return config.photometric_jitter or bool(config.scale_jitter) or config.crop_share < 1


def jittered_size(
    size: tuple[int, int], config: DataConfig, seed: tuple[int, ...]
) -> tuple[int, int]:
    """Return the (height, width) of a picture after large-scale jitter.

    Args:
      size: (height, width) without jitter, pixels.
      config: ``scale_jitter`` is the range of the factor.
      seed: seed of the picture.
    """
    if not config.scale_jitter:
        return size
    low, high = config.scale_jitter
    factor = np.random.default_rng((*seed, 0)).uniform(low, high)
    height, width = (max(int(side * factor + 0.5), 1) for side in size)
    return height, width


def draw_window(
    boxes_xyxy: Float32[np.ndarray, "G 4"], size: tuple[int, int], augmentation: Augmentation
) -> Window:
    """Draw the part of a resized picture that is kept.

    As in the reference, a part without any box is drawn again. After `CROP_ATTEMPTS` the window is
    moved to the first box.

    Args:
      boxes_xyxy: boxes in the resized picture.
      size: (height, width) of the resized picture, pixels.
      augmentation: random changes of the picture.
    """
    rng = np.random.default_rng((*augmentation.seed, 1))
    largest = np.minimum(size, augmentation.largest_crop)
    for _ in range(CROP_ATTEMPTS):
        shares = rng.uniform(augmentation.crop_share, 1, 2)
        height, width = np.maximum((largest * shares + 0.5).astype(int), 1).tolist()
        top, left = rng.integers(0, (size[0] - height + 1, size[1] - width + 1)).tolist()
        window = (top, left, height, width)
        if not len(boxes_xyxy) or crop_boxes(boxes_xyxy, window)[1].any():
            return window
    x1, y1, _, _ = boxes_xyxy[0].astype(int).tolist()
    return min(y1, size[0] - height), min(x1, size[1] - width), height, width


def crop_boxes(
    boxes_xyxy: Float32[np.ndarray, "G 4"], window: Window
) -> tuple[Float32[np.ndarray, "G 4"], Bool[np.ndarray, " G"]]:
    """Return boxes in pixels of the window, clipped to it, and a mask of those with area left."""
    top, left, height, width = window
    shifted = boxes_xyxy - np.array([left, top, left, top], np.float32)
    clipped = np.clip(shifted, 0, np.array([width, height, width, height], np.float32))
    return clipped, (clipped[:, 2:] > clipped[:, :2]).all(axis=1)


def jitter_colours(
    image: UInt8[np.ndarray, "H W 3"], augmentation: Augmentation
) -> UInt8[np.ndarray, "H W 3"]:
    """Change brightness, contrast, saturation and hue, each with probability 0.5.

    These are the reference's ranges and order, without its swap of channels. Contrast comes before
    or after the other two with equal probability.
    """
    rng = np.random.default_rng((*augmentation.seed, 2))
    pixels = image.astype(np.float32)
    if rng.random() < 0.5:
        pixels += rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    contrast = rng.uniform(*CONTRAST) if rng.random() < 0.5 else 1.0
    contrast_first = rng.random() < 0.5
    if contrast_first:
        pixels *= contrast
    saturation = rng.uniform(*SATURATION) if rng.random() < 0.5 else 1.0
    hue = rng.uniform(-HUE, HUE) if rng.random() < 0.5 else 0.0
    if saturation != 1 or hue != 0:
        hsv = cv2.cvtColor(np.clip(pixels, 0, 255) / 255, cv2.COLOR_RGB2HSV)  # hue in degrees
        hsv[..., 1] = np.minimum(hsv[..., 1] * saturation, 1)
        hsv[..., 0] = (hsv[..., 0] + hue) % 360
        pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255
    if not contrast_first:
        pixels *= contrast
    return np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
