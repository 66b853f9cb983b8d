"""Choose the settings of a run from its dataset.

docs/using.md lists the rules with their sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rpn_jax.config import CANVAS_MULTIPLE, AnchorConfig, Config
from rpn_jax.data.dataset import Dataset
from rpn_jax.data.plan import plan_training
from rpn_jax.data.statistics import REACHED_IOU, resized_anchor_ious

MIN_STEPS = 600
"""Smallest number of steps of a run."""
WARMUP_SHARE = 6
"""The warm-up takes at most one of this many parts of the steps."""
EVALUATIONS = 12
"""Largest number of evaluations of a run."""
LARGEST_ENLARGEMENT = 2
"""Pictures are enlarged at most by this factor."""
LARGEST_SCALE = (1333, 800)
"""Largest (long side, short side) that is chosen, pixels: that of the reference."""
UNREACHED_SHARE = 0.1
"""Largest share of boxes that no anchor may reach. Larger pictures are chosen above it."""
COUNTED_BOXES = 20_000
"""Number of boxes that are compared with anchors at most."""


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen, and why."""

    key: str
    """Dotted key of the field."""
    value: Any
    reason: str


def choose_settings(
    config: Config, dataset: Dataset, given: Collection[str]
) -> tuple[Config, list[Choice]]:
    """Return a config with settings for a dataset, and the choices in order.

    Args:
      config: the config with the flags of the user.
      dataset: dataset to train on.
      given: dotted keys of the fields that the user has set. They are not changed.

    Raises:
      UserError: the dataset has no picture to train on.
    """
    plan_training(dataset, config.data)  # raises if there is no picture to train on
    choices = []
    for key, rule in RULES.items():
        if key in given:
            continue
        value, reason = rule(config, dataset)
        section, _, name = key.partition(".")
        config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
        choices.append(Choice(key, value, reason))
    return config, choices


def _scale(config: Config, dataset: Dataset) -> tuple[tuple[int, int], str]:
    scale = config.data.scale
    if config.data.drawn_short_sides or config.data.buckets:
        return scale, "the short sides or buckets of the config belong to this size"
    sides = np.sort([(each.height, each.width) for each in dataset.pictures], axis=1)
    short, long = (int(side) for side in np.median(sides, axis=0))
    largest = (LARGEST_ENLARGEMENT * long, LARGEST_ENLARGEMENT * short)
    if largest[0] < scale[0] or largest[1] < scale[1]:
        smaller = (_rounded(min(scale[0], largest[0])), _rounded(min(scale[1], largest[1])))
        reason = f"the median picture has {long}x{short} pixels, and twice that is enough"
        return smaller, reason
    unreached = _unreached(dataset, scale, config.model.rpn.anchors)
    while unreached > UNREACHED_SHARE:
        limits = (min(long, LARGEST_SCALE[0]), min(short, LARGEST_SCALE[1]))
        factor = min(2, limits[0] / scale[0], limits[1] / scale[1])
        larger = (int(factor * scale[0]), int(factor * scale[1]))
        if larger <= scale:
            break
        scale = larger
        unreached = _unreached(dataset, scale, config.model.rpn.anchors)
    return scale, f"anchors do not reach {unreached:.0%} of the boxes at this size"


def _epochs(config: Config, dataset: Dataset) -> tuple[int, str]:
    steps = plan_training(dataset, config.data).epoch_steps
    epochs = max(config.train.epochs, math.ceil(MIN_STEPS / steps))
    reason = f"an epoch has {steps} steps, so the run has {epochs * steps}"
    if epochs > config.train.epochs:
        reason += f". {config.train.epochs} epochs would be less than {MIN_STEPS} steps"
    return epochs, reason


def _decays(config: Config, dataset: Dataset) -> tuple[tuple[int, ...], str]:
    decays, epochs = config.optim.decay_epochs, config.train.epochs
    if not decays:
        return decays, "the config has no decay"
    last = max(1, 11 * epochs // 12)
    if last <= decays[-1] < epochs:
        return decays, f"those of the config fit {epochs} epochs"
    scaled = tuple(sorted({max(1, round(epoch * last / decays[-1])) for epoch in decays}))
    return scaled, f"the last one comes after 11/12 of {epochs} epochs"


def _warmup(config: Config, dataset: Dataset) -> tuple[int, str]:
    steps = config.train.epochs * plan_training(dataset, config.data).epoch_steps
    warmup = min(config.optim.warmup_steps, steps // WARMUP_SHARE)
    return warmup, f"that of the config, at most a sixth of {steps} steps"


def _learning_rate(config: Config, dataset: Dataset) -> tuple[bool, str]:
    optim, size = config.optim, config.data.batch_size
    rate = optim.learning_rate * size / optim.base_batch_size
    reason = (
        f"{optim.learning_rate:g} is for {optim.base_batch_size} pictures a step. "
        f"{size} pictures get {rate:g}"
    )
    return True, reason


def _evaluations(config: Config, dataset: Dataset) -> tuple[int, str]:
    epochs = config.train.epochs
    if config.train.eval_every == 0:
        return 0, "the config never evaluates"
    every = max(config.train.eval_every, math.ceil(epochs / EVALUATIONS))
    return every, f"{math.ceil(epochs / every)} evaluations in {epochs} epochs"


RULES: dict[str, Callable[[Config, Dataset], tuple[Any, str]]] = {
    "data.scale": _scale,
    "train.epochs": _epochs,
    "optim.decay_epochs": _decays,
    "optim.warmup_steps": _warmup,
    "optim.auto_scale_lr": _learning_rate,
    "train.eval_every": _evaluations,
}
"""Functions that choose the value of a field and say why. Each uses the values of those before."""


def _unreached(dataset: Dataset, scale: tuple[int, int], anchors: AnchorConfig) -> float:
    """Return the share of boxes that no anchor reaches if pictures are resized to ``scale``."""
    boxes = sum(len(picture.objects.labels) for picture in dataset.pictures)
    pictures = dataset.pictures[:: max(1, math.ceil(boxes / COUNTED_BOXES))]
    ious = resized_anchor_ious(pictures, scale, anchors)[1]
    return float((ious < REACHED_IOU).mean()) if len(ious) else 0.0


def _rounded(side: int) -> int:
    return math.ceil(side / CANVAS_MULTIPLE) * CANVAS_MULTIPLE
