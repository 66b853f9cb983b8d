"""Load one picture and its boxes as a `Batch` of one, with NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.data import transforms
from rpn_jax.data.dataset import Picture
from rpn_jax.structures import Batch, PendingResize

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from rpn_jax.data.dataset import Dataset

NumpyBatch: Callable[..., Batch] = Batch
"""Creates a `Batch` of NumPy arrays. Its fields are annotated as the JAX arrays they become."""
NumpyPendingResize: Callable[..., PendingResize] = PendingResize
"""Creates a `PendingResize` of NumPy arrays."""

NO_PICTURE = Picture(-1, "", 1, 1, np.zeros((0, 4), np.float32))
"""Placeholder for an empty slot of a batch: black, 1x1 pixels, so that no size is zero."""


def load_picture(
    dataset: Dataset,
    index: int,
    scale: tuple[int, int],
    canvas: tuple[int, int],
    num_boxes: int,
    flipped: bool,
) -> Batch:
    """Read, resize, flip and pad one picture."""
    picture = dataset.pictures[index]
    size = transforms.resized_size(picture.height, picture.width, scale)
    image = transforms.resize(dataset.load_image(index), size)
    if flipped:
        image = transforms.flip(image)
    image = transforms.pad_to(image, canvas)
    return _batch_of_one(image, picture, index, size, num_boxes, flipped, pending_resize=None)


def load_original(
    dataset: Dataset,
    index: int,
    scale: tuple[int, int],
    original_canvas: tuple[int, int],
    canvas: tuple[int, int],
    num_boxes: int,
    flipped: bool,
) -> Batch:
    """Read one picture and pad it to ``original_canvas``. Its resize to ``canvas`` is pending."""
    picture = dataset.pictures[index]
    size = transforms.resized_size(picture.height, picture.width, scale)
    image = transforms.pad_to(dataset.load_image(index), original_canvas)
    pending = _pending_resize((picture.height, picture.width), flipped, canvas)
    return _batch_of_one(image, picture, index, size, num_boxes, flipped, pending)


def empty_picture(canvas: tuple[int, int], num_boxes: int) -> Batch:
    """Return an empty slot of a batch without a pending resize."""
    image = np.zeros((*canvas, 3), np.uint8)
    return _batch_of_one(
        image, NO_PICTURE, -1, (1, 1), num_boxes, flipped=False, pending_resize=None
    )


def empty_original(
    original_canvas: tuple[int, int], canvas: tuple[int, int], num_boxes: int
) -> Batch:
    """Return an empty slot of a batch with a pending resize, which keeps the size of 1x1."""
    image = np.zeros((*original_canvas, 3), np.uint8)
    pending = _pending_resize((1, 1), False, canvas)
    return _batch_of_one(image, NO_PICTURE, -1, (1, 1), num_boxes, False, pending)


def _pending_resize(size: tuple[int, int], flipped: bool, canvas: tuple[int, int]) -> PendingResize:
    return NumpyPendingResize(
        sizes=np.array([size], np.int32), flipped=np.array([flipped]), canvas=canvas
    )


def _batch_of_one(
    image: UInt8[np.ndarray, "H W 3"],
    picture: Picture,
    index: int,
    size: tuple[int, int],
    num_boxes: int,
    flipped: bool,
    pending_resize: PendingResize | None,
) -> Batch:
    """Return a `Batch` of one picture that is, or will be, resized to ``size``."""
    factors = transforms.scale_factors((picture.height, picture.width), size)
    boxes_xyxy = transforms.resize_boxes(picture.boxes_xyxy, factors, size)
    if flipped:
        boxes_xyxy = transforms.flip_boxes(boxes_xyxy, width=size[1])
    count = len(boxes_xyxy)
    return NumpyBatch(
        images=image[None],
        image_sizes=np.array([size], np.int32),
        scale_factors=factors[None],
        boxes_xyxy=np.pad(boxes_xyxy, ((0, num_boxes - count), (0, 0)))[None],
        labels=np.zeros((1, num_boxes), np.int32),
        box_mask=(np.arange(num_boxes) < count)[None],
        indices=np.array([index], np.int32),
        pending_resize=pending_resize,
    )
