"""Load the batches of a dataset in threads, and keep two of them in flight.

The order, and which pictures are flipped, are a pure function of the seed and the step. A run that
is resumed at a step gets the batches that an uninterrupted run would have got.

With ``data.resize`` 'device' a batch holds the pictures as decoded, and their resize is pending.
All its other fields are the same. `rpn_jax.data.on_device` does the resize.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, TypeVar

import cv2
import grain
import jax
import numpy as np

from rpn_jax.data.augment import Augmentation, is_augmented, jittered_size
from rpn_jax.data.bad_pictures import BadPictures, DamagedPictures
from rpn_jax.data.loading import Slot, empty_picture, load_picture
from rpn_jax.data.plan import (
    Epoch,
    Layout,
    TrainingPlan,
    plan_epoch,
    plan_eval_batches,
    plan_layout,
)
from rpn_jax.data.transforms import resized_sizes
from rpn_jax.errors import UserError
from rpn_jax.hosts.exchange import ALL_BATCHES
from rpn_jax.runtime import loader_threads
from rpn_jax.structures import Batch

if TYPE_CHECKING:
    from jaxtyping import Int

    from rpn_jax.config import DataConfig
    from rpn_jax.data.dataset import Dataset, Picture

T = TypeVar("T")
S = TypeVar("S")

ORIGINALS_MULTIPLE = 128
"""Sides of the canvases for pictures as decoded are multiples of this, pixels.

Coarse, because each canvas costs a small compilation.
"""


def train_batches(
    dataset: Dataset,
    plan: TrainingPlan,
    seed: int,
    first_step: int,
    positions: range | None = None,
) -> Iterator[Batch]:
    """Yield endless training batches (NumPy arrays) from step ``first_step`` on.

    ``positions`` are the places of each batch that are loaded. None loads all. The pictures at
    these places do not depend on it, so several processes can share a batch.

    With ``data.on_bad_picture`` 'skip', the next picture of the batch takes the place of one that
    cannot be read. The first JPEG with damaged pixels is named in a warning.

    Raises:
      UserError: a picture cannot be read, or too many of them.
    """
    config = plan.config
    bad_pictures = BadPictures(config)
    damaged_pictures = DamagedPictures(dataset)
    positions = range(config.batch_size) if positions is None else positions

    @lru_cache(maxsize=2)
    def epoch_of(number: int) -> Epoch:
        return plan_epoch(plan.groups, config, seed, number, plan.repeats)

    def load(place: int) -> Batch:
        step, number_in_share = divmod(place, len(positions))
        position = positions[number_in_share]
        number, row = divmod(step, plan.epoch_steps)
        epoch = epoch_of(number)
        flipped = bool(epoch.flips[row, position])
        scale = config.scale
        if epoch.short_sides is not None:
            scale = (scale[0], int(epoch.short_sides[row, position]))
        picture_seed = (seed, number, row, position) if is_augmented(config) else None
        indices = epoch.indices[row]
        for tried in range(position, position + config.batch_size):
            index = int(indices[tried % config.batch_size])
            load_it = partial(
                _load, dataset, config, plan.layout, indices, index, scale, flipped, picture_seed
            )
            batch = bad_pictures.attempt(index, load_it)
            if batch is not None:
                damaged_pictures.check(index)
                return batch
        raise UserError("no picture of a batch can be read. 'rpn-jax check-data' lists all")

    first = first_step * len(positions)
    return _load_in_threads(load, range(first, sys.maxsize), len(positions), config)


def eval_batches(
    dataset: Dataset,
    config: DataConfig,
    selected: slice = ALL_BATCHES,
    skipped: Iterable[int] = (),
) -> Iterator[Batch]:
    """Yield the batches of `plan_eval_batches` (NumPy arrays), which hold every picture once.

    The last batch of a bucket is filled up with empty pictures, see `empty_picture`. With
    ``data.on_bad_picture`` 'skip', such a picture also takes the place of one that cannot be read.

    Args:
      dataset: pictures.
      config: sizes and batches.
      selected: which of the batches are loaded.
      skipped: positions of the pictures in the others that could not be read.

    Raises:
      UserError: a picture cannot be read.
    """
    layout = plan_layout(dataset.pictures, config)
    bad_pictures = BadPictures(config, skipped)
    size = config.eval_batch_size
    rows = plan_eval_batches(layout, config)[selected]

    def load(place: int) -> Batch:
        row, position = divmod(place, size)
        indices = rows[row]
        index = int(indices[position])
        load_index = partial(
            _load, dataset, config, layout, indices, scale=config.scale, flipped=False
        )
        batch = bad_pictures.attempt(index, partial(load_index, index))
        return load_index(-1) if batch is None else batch

    places = range(len(rows) * size)
    return _load_in_threads(load, places, size, config)


def originals_canvas(pictures: Sequence[Picture]) -> tuple[int, int]:
    """Return (height, width) of the smallest canvas that holds the pictures as decoded."""
    height = max(picture.height for picture in pictures)
    width = max(picture.width for picture in pictures)
    return (
        -(-height // ORIGINALS_MULTIPLE) * ORIGINALS_MULTIPLE,
        -(-width // ORIGINALS_MULTIPLE) * ORIGINALS_MULTIPLE,
    )


def prefetch(batches: Iterator[T], place: Callable[[T], S], size: int = 2) -> Iterator[S]:
    """Yield the batches in order, and place each ``size`` batches before its use.

    Args:
      batches: batches on the host.
      place: puts a batch on the devices (and may start work on it), without waiting.
      size: number of batches that are placed and not yet yielded, 1 or more.
    """
    placed: deque[S] = deque()
    for batch in batches:
        placed.append(place(batch))
        if len(placed) == size:
            yield placed.popleft()
    yield from placed


def _load(
    dataset: Dataset,
    config: DataConfig,
    layout: Layout,
    indices: Int[np.ndarray, " B"],
    index: int,
    scale: tuple[int, int],
    flipped: bool,
    seed: tuple[int, ...] | None = None,
) -> Batch:
    """Load a picture of the batch that holds the pictures ``indices``, or an empty one for -1.

    Its size is the largest that fits into ``scale``, which is at most ``config.scale``. With a
    ``seed`` it is changed at random as the config says.
    """
    # All pictures of a batch are of one bucket.
    canvas = config.canvases[layout.buckets[indices.max()]]
    original_canvas = None
    if config.resize == "device":
        original_canvas = originals_canvas([dataset.pictures[i] for i in indices if i >= 0])
    if index < 0:
        return empty_picture(canvas, layout.num_boxes, original_canvas)
    picture = dataset.pictures[index]
    original_size = np.array([(picture.height, picture.width)])
    ((height, width),) = resized_sizes(original_size, scale).tolist()
    augmentation = None
    if seed is not None:
        largest_crop = (height, width)
        height, width = jittered_size(largest_crop, config, seed)
        augmentation = Augmentation(
            seed, config.photometric_jitter, largest_crop, config.crop_share
        )
    slot = Slot(
        index,
        (height, width),
        canvas,
        layout.num_boxes,
        flipped,
        augmentation,
        original_canvas,
    )
    return load_picture(dataset, slot)


def _load_in_threads(
    load: Callable[[int], Batch],
    places: range,
    batch_size: int,
    config: DataConfig,
) -> Iterator[Batch]:
    """Load pictures in threads ahead of their use, and concatenate them to batches in order."""
    # Each picture has its own thread here. OpenCV's threads would only compete with them.
    cv2.setNumThreads(0)
    threads = loader_threads(config.loader_threads)
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(2 * batch_size, threads)
    )
    pictures = grain.MapDataset.range(places.start, places.stop).map(partial(_attempt, load))
    for batch in pictures.to_iter_dataset(options).batch(batch_size, batch_fn=_concatenate):
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _attempt(load: Callable[[int], Batch], place: int) -> Batch | UserError:
    # Return the error as a value, because Grain adds lines to an exception that passes through it.
    try:
        return load(place)
    except UserError as error:
        return error


def _concatenate(
    pictures: Sequence[Batch | UserError],
) -> Batch | UserError:
    for picture in pictures:
        if isinstance(picture, UserError):
            return picture
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *pictures)
