"""The plan of the input pipeline: sizes, canvases, and the pictures of each step.

A picture goes to the smallest canvas (bucket) that holds it after resizing, and a batch holds
pictures of one bucket. All this is computed once for a dataset, over arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import jax
import numpy as np

from rpn_jax.config import CANVAS_MULTIPLE
from rpn_jax.data.combined import picture_repeats
from rpn_jax.data.dataset import training_box_counts
from rpn_jax.data.loading import empty_picture
from rpn_jax.data.transforms import resized_sizes
from rpn_jax.errors import UserError
from rpn_jax.structures import Batch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Int

    from rpn_jax.config import DataConfig
    from rpn_jax.data.dataset import Dataset, Picture

BOXES_MULTIPLE = 8
"""Boxes of a picture are padded to a multiple of this."""


@dataclass(frozen=True, eq=False)
class Layout:
    """How the pictures of a dataset are resized and padded."""

    sizes: Int[np.ndarray, "N 2"]
    """(height, width) of each picture after resizing, pixels."""
    buckets: Int[np.ndarray, " N"]
    """Position in ``config.canvases`` of the smallest bucket that holds the picture."""
    box_counts: Int[np.ndarray, " N"]
    """Number of boxes to train on in each picture."""

    @property
    def num_boxes(self) -> int:
        """G of every batch: the largest number of boxes, rounded up to `BOXES_MULTIPLE`."""
        largest = int(self.box_counts.max(initial=1))
        return -(-largest // BOXES_MULTIPLE) * BOXES_MULTIPLE


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """All that training needs to know about its pictures before it reads them."""

    config: DataConfig
    layout: Layout
    groups: tuple[Int[np.ndarray, "_"], ...]
    """Positions of the pictures to train on: one array for each bucket that is used."""
    repeats: Float64[np.ndarray, " N"] | None
    """How often an epoch shows each picture on average. None: every picture once."""

    @property
    def indices(self) -> Int[np.ndarray, "_"]:
        """Positions of all pictures to train on."""
        return np.concatenate(self.groups)

    @property
    def epoch_steps(self) -> int:
        """Training steps of an epoch. Without ``repeats`` they show every picture at least once."""
        size = self.config.batch_size
        return sum(-(-shown_pictures(group, self.repeats) // size) for group in self.groups)

    def batch_shapes(self) -> list[Batch]:
        """Return a `Batch` of `jax.ShapeDtypeStruct` for each used bucket, to compile ahead."""
        canvases = [self.config.canvases[self.layout.buckets[group[0]]] for group in self.groups]
        return [
            jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(
                    (self.config.batch_size, *leaf.shape[1:]), leaf.dtype
                ),
                empty_picture(canvas, self.layout.num_boxes, original_canvas=None),
            )
            for canvas in canvases
        ]


@dataclass(frozen=True, eq=False)
class Epoch:
    """The pictures that an epoch shows, in order."""

    indices: Int[np.ndarray, "steps B"]
    """Positions in the dataset; each row is of one bucket."""
    flips: Bool[np.ndarray, "steps B"]
    """True where a picture is flipped left to right."""
    short_sides: Int[np.ndarray, "steps B"] | None
    """Short side that each picture is resized to, pixels. None without multi-scale training."""


def plan_layout(pictures: Sequence[Picture], config: DataConfig) -> Layout:
    """Compute the resized size, the bucket and the number of boxes of each picture."""
    sizes = _resized(pictures, config)
    canvases = np.array(config.canvases)
    by_area = np.argsort(canvases.prod(axis=1), kind="stable")
    canvases = canvases[by_area]
    fits = (sizes[:, None] <= canvases).all(axis=2)  # [pictures, buckets]
    return Layout(sizes, by_area[fits.argmax(axis=1)], training_box_counts(pictures))


def plan_training(dataset: Dataset, config: DataConfig) -> TrainingPlan:
    """Plan the training on a dataset's pictures: those with an object that are not too small.

    As in the reference, a picture stays if its only objects are crowds or are not trained on for
    another reason. Its anchors are all negative.

    Raises:
      UserError: no such picture has a box to train on, or an epoch shows none.
    """
    layout = plan_layout(dataset.pictures, config)
    is_small = small_pictures(dataset.pictures, config)
    annotated = np.array([len(picture.objects.labels) > 0 for picture in dataset.pictures], bool)
    indices = np.flatnonzero(annotated & ~is_small)
    if not layout.box_counts[indices].any():
        raise UserError(
            f"no picture to train on: none of {len(dataset.pictures)} has a box and sides of at "
            f"least data.min_image_size = {config.min_image_size} pixels"
        )
    buckets = layout.buckets[indices]
    groups = tuple(indices[buckets == bucket] for bucket in np.unique(buckets))
    plan = TrainingPlan(config, layout, groups, picture_repeats(dataset, indices, config))
    if not plan.epoch_steps:
        raise UserError(
            f"data.train_repeats = {config.train_repeats}: an epoch would show none of "
            f"{len(indices)} pictures. Use larger numbers"
        )
    return plan


def small_pictures(pictures: Sequence[Picture], config: DataConfig) -> Bool[np.ndarray, " N"]:
    """Return for each picture whether it is too small to train on, as in the reference."""
    shorter = [min(picture.height, picture.width) for picture in pictures]
    return np.array(shorter, np.int64) < config.min_image_size


def plan_epoch(
    groups: Sequence[Int[np.ndarray, "_"]],
    config: DataConfig,
    seed: int,
    epoch: int,
    repeats: Float64[np.ndarray, " N"] | None = None,
) -> Epoch:
    """Decide the order of an epoch, a pure function of the arguments.

    The pictures of each group are shuffled and cut into batches. The last batch is filled up with
    the group's first pictures. Then the batches of all groups are shuffled.
    """
    rng = np.random.default_rng((seed, epoch))
    size = config.batch_size
    batches = []
    for group in groups:
        shown = _draw_pictures(group, repeats, rng)
        batches.append(np.resize(shown, (-(-len(shown) // size), size)))
    indices = rng.permutation(np.concatenate(batches))
    flips = rng.random(indices.shape) < config.flip_probability
    # Drawn last, so that order and flips do not depend on the number of short sides.
    sides = config.drawn_short_sides
    return Epoch(indices, flips, rng.choice(sides, indices.shape) if sides else None)


def shown_pictures(group: Int[np.ndarray, "_"], repeats: Float64[np.ndarray, " N"] | None) -> int:
    """Return the number of pictures of a group that an epoch shows, repeated ones included."""
    if repeats is None:
        return len(group)
    return math.ceil(round(float(repeats[group].sum()), 6))


def _draw_pictures(
    group: Int[np.ndarray, "_"],
    repeats: Float64[np.ndarray, " N"] | None,
    rng: np.random.Generator,
) -> Int[np.ndarray, " n"]:
    """Return the pictures of a group that an epoch shows, in random order.

    A picture with repeats r is shown floor(r) or ceil(r) times, r times on average over the epochs.
    Systematic sampling keeps the number of pictures the same in all epochs: the repeats are
    lengths of pieces of a line, and one picture is drawn at each whole number plus an offset.
    """
    order = rng.permutation(group)
    if repeats is None:
        return order
    total = shown_pictures(group, repeats)
    ends = np.cumsum(repeats[order])
    ends *= total / ends[-1]
    ends[-1] = total
    counts = np.diff(np.floor(ends + rng.random()), prepend=0).astype(int)
    return rng.permutation(np.repeat(order, counts))


def plan_eval_batches(layout: Layout, config: DataConfig) -> Int[np.ndarray, "batches B"]:
    """Return the positions of the pictures of each batch, every picture once, grouped by bucket.

    The last batch of a bucket is filled up with -1.
    """
    size = config.eval_batch_size
    groups = [np.flatnonzero(layout.buckets == bucket) for bucket in np.unique(layout.buckets)]
    filled = [
        np.pad(group, (0, -len(group) % size), constant_values=-1).reshape(-1, size)
        for group in groups
    ]
    return np.concatenate([np.zeros((0, size), np.int64), *filled])


def with_exact_padding(dataset: Dataset, config: DataConfig) -> DataConfig:
    """Return a config whose buckets pad every picture as little as the reference does.

    Each size that occurs, rounded up to a multiple of `CANVAS_MULTIPLE`, becomes a bucket. Each
    bucket costs a compilation.
    """
    tight = -(-_resized(dataset.pictures, config) // CANVAS_MULTIPLE) * CANVAS_MULTIPLE
    canvases = [(height, width) for height, width in np.unique(tight, axis=0).tolist()]
    return replace(config, buckets=(*canvases, *config.canvases))


def _resized(pictures: Sequence[Picture], config: DataConfig) -> Int[np.ndarray, "N 2"]:
    sizes = [(picture.height, picture.width) for picture in pictures]
    return resized_sizes(np.array(sizes).reshape(-1, 2), config.scale)
