"""One picture and its boxes to an entry of a batch: a batch of one, of NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.data import transforms
from rpn_jax.data.dataset import Picture
from rpn_jax.structures import Batch, SourceBatch

if TYPE_CHECKING:
    from rpn_jax.data.dataset import Dataset

NumpyBatch: Callable[..., Batch] = Batch
"""Makes a `Batch` of NumPy arrays: its fields are typed as the device arrays they become."""
NumpySourceBatch: Callable[..., SourceBatch] = SourceBatch
"""Likewise a `SourceBatch`."""

NO_PICTURE = Picture(-1, "", 1, 1, np.zeros((0, 4), np.float32))
"""Fills up a batch, with index -1: black, of 1x1 pixels, so that no size is zero anywhere."""


def load_picture(
    dataset: Dataset,
    index: int,
    scale: tuple[int, int],
    bucket: tuple[int, int],
    num_boxes: int,
    flipped: bool,
) -> Batch:
    """Read, resize, flip and pad one picture."""
    picture = dataset.pictures[index]
    size = transforms.resized_size(picture.height, picture.width, scale)
    image = transforms.resize(dataset.load_image(index), size)
    if flipped:
        image = transforms.flip(image)
    return NumpyBatch(
        images=transforms.pad_to(image, bucket)[None],
        **_all_but_pixels(picture, index, size, num_boxes, flipped),
    )


def load_original(
    dataset: Dataset,
    index: int,
    scale: tuple[int, int],
    source_canvas: tuple[int, int],
    bucket: tuple[int, int],
    num_boxes: int,
    flipped: bool,
) -> SourceBatch:
    """Read one picture and pad it to ``source_canvas``; the device does the rest."""
    picture = dataset.pictures[index]
    size = transforms.resized_size(picture.height, picture.width, scale)
    return NumpySourceBatch(
        originals=transforms.pad_to(dataset.load_image(index), source_canvas)[None],
        original_sizes=np.array([(picture.height, picture.width)], np.int32),
        mirrored=np.array([flipped]),
        canvas=bucket,
        **_all_but_pixels(picture, index, size, num_boxes, flipped),
    )


def empty_picture(bucket: tuple[int, int], num_boxes: int) -> Batch:
    """`NO_PICTURE`, padded."""
    return NumpyBatch(
        images=np.zeros((1, *bucket, 3), np.uint8),
        **_all_but_pixels(NO_PICTURE, -1, (1, 1), num_boxes, flipped=False),
    )


def empty_original(
    source_canvas: tuple[int, int], bucket: tuple[int, int], num_boxes: int
) -> SourceBatch:
    """`NO_PICTURE`, to be "resized" to its own size."""
    return NumpySourceBatch(
        originals=np.zeros((1, *source_canvas, 3), np.uint8),
        original_sizes=np.ones((1, 2), np.int32),
        mirrored=np.zeros((1,), bool),
        canvas=bucket,
        **_all_but_pixels(NO_PICTURE, -1, (1, 1), num_boxes, flipped=False),
    )


def _all_but_pixels(
    picture: Picture, index: int, size: tuple[int, int], num_boxes: int, flipped: bool
) -> dict[str, np.ndarray]:
    """The fields that a `Batch` and a `SourceBatch` share, for a picture resized to ``size``."""
    factors = transforms.scale_factors((picture.height, picture.width), size)
    boxes_xyxy = transforms.resize_boxes(picture.boxes_xyxy, factors, size)
    if flipped:
        boxes_xyxy = transforms.flip_boxes(boxes_xyxy, width=size[1])
    count = len(boxes_xyxy)
    return {
        "image_sizes": np.array([size], np.int32),
        "scale_factors": factors[None],
        "boxes_xyxy": np.pad(boxes_xyxy, ((0, num_boxes - count), (0, 0)))[None],
        "box_mask": (np.arange(num_boxes) < count)[None],
        "indices": np.array([index], np.int32),
    }
