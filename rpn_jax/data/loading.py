"""Load one picture and its boxes as a `Batch` of one, with NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.data import transforms
from rpn_jax.data.augment import Augmentation, Window, crop_boxes, draw_window, jitter_colours
from rpn_jax.data.dataset import Picture, training_boxes
from rpn_jax.structures import Batch, PendingResize

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from rpn_jax.data.dataset import Dataset

NumpyBatch: Callable[..., Batch] = Batch
"""Creates a `Batch` of NumPy arrays. Its fields are annotated as the JAX arrays they become."""
NumpyPendingResize: Callable[..., PendingResize] = PendingResize
"""Creates a `PendingResize` of NumPy arrays."""


@dataclass(frozen=True)
class Slot:
    """A place of a batch, and the picture that it holds."""

    index: int
    """Position of the picture in its dataset."""
    size: tuple[int, int]
    """(height, width) to resize the picture to, pixels."""
    canvas: tuple[int, int]
    """(height, width) of the batch's canvas, pixels."""
    num_boxes: int
    """Number of boxes, padding included."""
    flipped: bool = False
    """Flip the resized picture left to right."""
    augmentation: Augmentation | None = None
    """Random changes of the picture, or None."""
    original_canvas: tuple[int, int] | None = None
    """(height, width) of the canvas for pictures that are resized on the device, or None."""


def load_picture(dataset: Dataset, slot: Slot) -> Batch:
    """Read a picture. Resize and flip it, unless the device does so, and pad it."""
    picture = dataset.pictures[slot.index]
    return _batch_of_one(picture, dataset.load_image(slot.index), slot)


def empty_picture(
    canvas: tuple[int, int], num_boxes: int, original_canvas: tuple[int, int] | None
) -> Batch:
    """Fill a slot without a picture: index -1, black, 1x1 pixels, so that no size is zero."""
    slot = Slot(-1, (1, 1), canvas, num_boxes, original_canvas=original_canvas)
    return _batch_of_one(Picture(-1, "", 1, 1), np.zeros((1, 1, 3), np.uint8), slot)


def _batch_of_one(picture: Picture, image: UInt8[np.ndarray, "h w 3"], slot: Slot) -> Batch:
    factors = transforms.scale_factors((picture.height, picture.width), slot.size)
    boxes_xyxy, labels = training_boxes(picture)
    boxes_xyxy = transforms.resize_boxes(boxes_xyxy, factors, slot.size)
    size, window = slot.size, None
    if slot.augmentation is not None and slot.original_canvas is None:
        window = draw_window(boxes_xyxy, slot.size, slot.augmentation)
        boxes_xyxy, is_left = crop_boxes(boxes_xyxy, window)
        boxes_xyxy, labels, size = boxes_xyxy[is_left], labels[is_left], window[2:]
    if slot.flipped:
        boxes_xyxy = transforms.flip_boxes(boxes_xyxy, width=size[1])
    if slot.augmentation is not None and slot.augmentation.photometric:
        image = jitter_colours(image, slot.augmentation)
    padding = slot.num_boxes - len(labels)
    return NumpyBatch(
        images=_prepare_image(image, slot, window)[None],
        image_sizes=np.array([size], np.int32),
        scale_factors=factors[None],
        boxes_xyxy=np.pad(boxes_xyxy, ((0, padding), (0, 0)))[None],
        labels=np.pad(labels, (0, padding))[None],
        box_mask=(np.arange(slot.num_boxes) < len(labels))[None],
        indices=np.array([slot.index], np.int32),
        pending_resize=_pending_resize(image, slot),
    )


def _prepare_image(
    image: UInt8[np.ndarray, "h w 3"], slot: Slot, window: Window | None
) -> UInt8[np.ndarray, "H W 3"]:
    if slot.original_canvas is not None:
        return transforms.pad_to(image, slot.original_canvas)
    image = transforms.resize(image, slot.size)
    if window is not None:
        top, left, height, width = window
        image = image[top : top + height, left : left + width]
    return transforms.pad_to(transforms.flip(image) if slot.flipped else image, slot.canvas)


def _pending_resize(image: UInt8[np.ndarray, "h w 3"], slot: Slot) -> PendingResize | None:
    if slot.original_canvas is None:
        return None
    return NumpyPendingResize(
        sizes=np.array([image.shape[:2]], np.int32),
        flipped=np.array([slot.flipped]),
        canvas=slot.canvas,
    )
