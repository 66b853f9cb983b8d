"""Datasets to batches: order, buckets, loading in threads, two batches in flight.

A picture goes to the smallest canvas (bucket) that holds it after resizing, and a batch holds
pictures of one bucket. The order, and which pictures are flipped, are a pure function of the seed
and the step: a run resumed at a step sees what an uninterrupted one would have seen.

With ``data.resize`` 'device' a batch holds the pictures as decoded, and their resize is pending.
All its other fields are the same. `rpn_jax.data.on_device` does the resize.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, TypeVar

import jax
import numpy as np

from rpn_jax.config import CANVAS_MULTIPLE
from rpn_jax.data import transforms
from rpn_jax.data.loading import empty_original, empty_picture, load_original, load_picture
from rpn_jax.errors import UserError
from rpn_jax.structures import Batch

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

    from rpn_jax.config import DataConfig
    from rpn_jax.data.dataset import Dataset, Picture

T = TypeVar("T")
S = TypeVar("S")

BOXES_MULTIPLE = 8
"""Boxes of a picture are padded to a multiple of this."""
ORIGINALS_MULTIPLE = 128
"""Sides of originals' canvases, pixels: coarse, as each canvas costs a small compilation."""


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """Which pictures an epoch shows, in which order."""

    indices: Int[np.ndarray, "steps B"]
    """Positions in the dataset; each row is of one bucket."""
    flips: Bool[np.ndarray, "steps B"]
    """True where a picture is mirrored."""


def training_indices(dataset: Dataset, config: DataConfig) -> Int[np.ndarray, " M"]:
    """Positions of the pictures to train on: with a box, and not too small.

    Raises:
      UserError: there is none.
    """
    indices = [
        index
        for index, picture in enumerate(dataset.pictures)
        if len(picture.boxes_xyxy) and min(picture.height, picture.width) >= config.min_image_size
    ]
    if not indices:
        raise UserError(
            f"no picture to train on: none of {len(dataset.pictures)} has a box and sides of at "
            f"least data.min_image_size = {config.min_image_size} pixels"
        )
    return np.array(indices)


def assign_buckets(pictures: Sequence[Picture], config: DataConfig) -> Int[np.ndarray, " M"]:
    """For each picture the position in ``config.buckets`` of the smallest that holds it."""
    by_area = sorted(range(len(config.buckets)), key=lambda i: int(np.prod(config.buckets[i])))

    def smallest(picture: Picture) -> int:
        height, width = transforms.resized_size(picture.height, picture.width, config.scale)
        return next(
            i for i in by_area if height <= config.buckets[i][0] and width <= config.buckets[i][1]
        )

    return np.array([smallest(picture) for picture in pictures], np.int64)


def with_exact_padding(dataset: Dataset, config: DataConfig) -> DataConfig:
    """A config whose buckets hold every picture with the least padding, as the reference pads.

    Each size that occurs, rounded up to a multiple of `CANVAS_MULTIPLE`, becomes a bucket, and
    each bucket is compiled for: exact, at the price of compiling more often.
    """
    tight = {_tight_canvas(picture, config.scale) for picture in dataset.pictures}
    return replace(config, buckets=(*sorted(tight), *config.buckets))


def _tight_canvas(picture: Picture, scale: tuple[int, int]) -> tuple[int, int]:
    height, width = transforms.resized_size(picture.height, picture.width, scale)
    return (
        -(-height // CANVAS_MULTIPLE) * CANVAS_MULTIPLE,
        -(-width // CANVAS_MULTIPLE) * CANVAS_MULTIPLE,
    )


def originals_canvas(pictures: Sequence[Picture]) -> tuple[int, int]:
    """(height, width) of the smallest canvas in `ORIGINALS_MULTIPLE` that holds the originals."""
    height = max(picture.height for picture in pictures)
    width = max(picture.width for picture in pictures)
    return (
        -(-height // ORIGINALS_MULTIPLE) * ORIGINALS_MULTIPLE,
        -(-width // ORIGINALS_MULTIPLE) * ORIGINALS_MULTIPLE,
    )


def padded_boxes(dataset: Dataset) -> int:
    """G of every batch: the most boxes of a picture, rounded up to `BOXES_MULTIPLE`."""
    most = max((len(picture.boxes_xyxy) for picture in dataset.pictures), default=0)
    return max(-(-most // BOXES_MULTIPLE), 1) * BOXES_MULTIPLE


def batch_shapes(dataset: Dataset, config: DataConfig) -> list[Batch]:
    """A `Batch` of `jax.ShapeDtypeStruct` for each bucket that training uses, to compile ahead."""
    used = np.unique(assign_buckets(dataset.pictures, config)[training_indices(dataset, config)])
    num_boxes = padded_boxes(dataset)
    return [
        jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((config.batch_size, *leaf.shape[1:]), leaf.dtype),
            empty_picture(config.buckets[bucket], num_boxes),
        )
        for bucket in used
    ]


def steps_per_epoch(dataset: Dataset, config: DataConfig) -> int:
    """Training steps that show every picture at least once."""
    return sum(-(-len(group) // config.batch_size) for group in _train_groups(dataset, config))


def train_batches(
    dataset: Dataset, config: DataConfig, seed: int, first_step: int
) -> Iterator[Batch]:
    """Endless training batches (NumPy arrays) from step ``first_step`` on.

    Raises:
      UserError: no picture to train on, and from the iterator: a picture that cannot be read.
    """
    groups = _train_groups(dataset, config)
    steps = steps_per_epoch(dataset, config)
    buckets = assign_buckets(dataset.pictures, config)
    num_boxes = padded_boxes(dataset)

    @lru_cache(maxsize=2)
    def plan(epoch: int) -> EpochPlan:
        return plan_epoch(groups, config.batch_size, config.flip_probability, seed, epoch)

    def load(place: int) -> Batch:
        step, slot = divmod(place, config.batch_size)
        epoch, row = divmod(step, steps)
        indices = plan(epoch).indices[row]
        bucket = config.buckets[buckets[indices[slot]]]
        flipped = bool(plan(epoch).flips[row, slot])
        return _load_slot(dataset, config, indices, slot, bucket, num_boxes, flipped)

    first = first_step * config.batch_size
    return _load_in_threads(load, range(first, sys.maxsize), config.batch_size, config)


def eval_batches(dataset: Dataset, config: DataConfig) -> Iterator[Batch]:
    """Every picture once, grouped by bucket; NumPy arrays.

    A bucket's last batch is filled up with black pictures of 1x1 pixels, index -1, without boxes.

    Raises:
      UserError: from the iterator: a picture that cannot be read.
    """
    buckets = assign_buckets(dataset.pictures, config)
    num_boxes = padded_boxes(dataset)
    size = config.eval_batch_size
    rows = [
        (indices, config.buckets[bucket])
        for bucket in np.unique(buckets)
        for indices in _fill_up(np.flatnonzero(buckets == bucket), size).reshape(-1, size)
    ]

    def load(place: int) -> Batch:
        row, slot = divmod(place, size)
        indices, bucket = rows[row]
        return _load_slot(dataset, config, indices, slot, bucket, num_boxes, flipped=False)

    return _load_in_threads(load, range(len(rows) * size), size, config)


def plan_epoch(
    groups: Sequence[Int[np.ndarray, " M"]],
    batch_size: int,
    flip_probability: float,
    seed: int,
    epoch: int,
) -> EpochPlan:
    """The order of an epoch, a pure function of its arguments.

    Each group (the pictures of one bucket) is shuffled and cut into batches, its last batch filled
    up with the group's first pictures; then the batches of all groups are shuffled.
    """
    rng = np.random.default_rng((seed, epoch))
    batches = [
        np.resize(rng.permutation(group), (-(-len(group) // batch_size), batch_size))
        for group in groups
    ]
    indices = rng.permutation(np.concatenate(batches))
    return EpochPlan(indices, rng.random(indices.shape) < flip_probability)


def prefetch(batches: Iterator[T], place: Callable[[T], S], size: int = 2) -> Iterator[S]:
    """Keep ``size`` batches in flight: each is placed that many ahead of its use.

    Args:
      batches: batches on the host.
      place: puts a batch on the devices (and may start work on it), without waiting.
      size: batches placed and not yet handed out, 1 or more.
    """
    placed: deque[S] = deque()
    for batch in batches:
        placed.append(place(batch))
        if len(placed) == size:
            yield placed.popleft()
    yield from placed


def _train_groups(dataset: Dataset, config: DataConfig) -> list[Int[np.ndarray, " M"]]:
    indices = training_indices(dataset, config)
    buckets = assign_buckets([dataset.pictures[index] for index in indices], config)
    return [indices[buckets == bucket] for bucket in np.unique(buckets)]


def _fill_up(indices: Int[np.ndarray, " M"], batch_size: int) -> Int[np.ndarray, " M"]:
    return np.pad(indices, (0, -len(indices) % batch_size), constant_values=-1)


def _load_slot(
    dataset: Dataset,
    config: DataConfig,
    indices: Int[np.ndarray, " B"],
    slot: int,
    bucket: tuple[int, int],
    num_boxes: int,
    flipped: bool,
) -> Batch:
    """The picture at ``slot`` of a batch of ``indices``, resized or left to the device."""
    index = int(indices[slot])
    if config.resize == "host":
        if index < 0:
            return empty_picture(bucket, num_boxes)
        return load_picture(dataset, index, config.scale, bucket, num_boxes, flipped)
    source_canvas = originals_canvas([dataset.pictures[i] for i in indices if i >= 0])
    if index < 0:
        return empty_original(source_canvas, bucket, num_boxes)
    return load_original(dataset, index, config.scale, source_canvas, bucket, num_boxes, flipped)


def _load_in_threads(
    load: Callable[[int], Batch],
    places: range,
    batch_size: int,
    config: DataConfig,
) -> Iterator[Batch]:
    """Load pictures in threads, each ahead of its use, and join them to batches in order."""
    import cv2
    import grain

    # The loader's threads share the pictures among them; OpenCV's own would only get in their way.
    cv2.setNumThreads(0)
    options = grain.ReadOptions(
        num_threads=config.loader_threads,
        prefetch_buffer_size=max(2 * batch_size, config.loader_threads),
    )
    pictures = grain.MapDataset.range(places.start, places.stop).map(partial(_attempt, load))
    for batch in pictures.to_iter_dataset(options).batch(batch_size, batch_fn=_join):
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _attempt(load: Callable[[int], Batch], place: int) -> Batch | UserError:
    # Handed on as a value: Grain adds its own lines to an exception that passes through it.
    try:
        return load(place)
    except UserError as error:
        return error


def _join(
    pictures: Sequence[Batch | UserError],
) -> Batch | UserError:
    for picture in pictures:
        if isinstance(picture, UserError):
            return picture
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *pictures)
