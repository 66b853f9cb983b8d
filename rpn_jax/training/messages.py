"""The lines that a training run prints around its steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from rich.console import Console

from rpn_jax.config import Config, ModelConfig, OptimConfig
from rpn_jax.console import say
from rpn_jax.data.dataset import Dataset, describe_oddities
from rpn_jax.data.plan import TrainingPlan
from rpn_jax.devices import devices_for_batch
from rpn_jax.training.log import QuietLog, RunLog
from rpn_jax.training.patience import Patience
from rpn_jax.training.saving import describe_duration
from rpn_jax.weights.checkpoints import Saved, last_saved
from rpn_jax.weights.torch import published_backbone

REFERENCE_RATE = OptimConfig().learning_rate / OptimConfig().base_batch_size
"""The reference's learning rate for a batch of one picture, by the linear rule."""


def warn_about_schedule(config: Config, last_step: int, console: Console) -> None:
    """Print a line if the warm-up or the learning rate does not fit the run."""
    optim, batch_size = config.optim, config.data.batch_size
    if optim.warmup_steps >= last_step:
        say(
            console,
            f"warning: optim.warmup_steps = {optim.warmup_steps}: the run has only {last_step} "
            "steps, so the learning rate never reaches optim.learning_rate. Use "
            f"--optim.warmup-steps {last_step // 10}.",
        )
    if optim.auto_scale_lr or not _is_far(batch_size, optim.base_batch_size):
        return
    expected = REFERENCE_RATE * batch_size
    if _is_far(optim.learning_rate, expected):
        say(
            console,
            f"warning: optim.learning_rate = {optim.learning_rate:g} is for batches of "
            f"{optim.base_batch_size} pictures, but data.batch_size = {batch_size}. Use "
            f"--auto-scale-lr, or a rate near {expected:g} (the linear rule).",
        )


def _is_far(value: float, expected: float) -> bool:
    return not 0.5 <= value / expected <= 2.0


def print_start(config: Config, plan: TrainingPlan, last: Saved | None, console: Console) -> None:
    """Print what is trained on which devices, and from where.

    Args:
      config: config of the run.
      plan: pictures and steps.
      last: checkpoint that the run continues from, or None for a new run.
      console: console to print to.
    """
    devices = devices_for_batch(config.data.batch_size)
    if len(devices) < jax.device_count():
        say(
            console,
            f"note: data.batch_size = {config.data.batch_size} uses {len(devices)} of the "
            f"{jax.device_count()} devices. Choose a multiple of their number to use all.",
        )
    counts = plan.layout.box_counts[plan.indices]
    last_step = plan.epoch_steps * config.train.epochs
    say(
        console,
        f"training {config.name} on {len(devices)} x {devices[0].device_kind}: "
        f"{len(counts)} pictures with {counts.sum()} boxes in '{config.data.train_name}', "
        f"{config.train.epochs} epochs of {plan.epoch_steps} steps "
        f"of {config.data.batch_size} pictures",
    )
    left_out = len(plan.layout.box_counts) - len(counts)
    if left_out:
        say(
            console,
            f"note: {left_out} more pictures are not trained on: they have no object, or a side "
            f"below data.min_image_size = {config.data.min_image_size} pixels",
        )
    if last is not None:
        age = describe_duration(time.time() - last.saved_at)
        what = "the run is finished" if last.step >= last_step else "continuing"
        say(console, f"{what} after step {last.step}, which was saved {age} ago")
    elif not config.train.init_weights and _has_frozen_weights(config.model):
        published = published_backbone(config.model.backbone)
        source = f"{published}, or with a file," if published else "with a file"
        say(
            console,
            "note: the backbone starts from random weights, and its frozen part keeps them. "
            f"Use --train.init-weights {source} to start from a trained backbone.",
        )


def print_oddities(split: str, dataset: Dataset, console: Console) -> None:
    """Print the line of `describe_oddities`, if there is something to say."""
    oddities = describe_oddities(split, dataset.pictures)
    if oddities:
        say(console, oddities)


def _has_frozen_weights(model: ModelConfig) -> bool:
    backbone = model.backbone
    is_resnet = not model.backbone_class
    return is_resnet and (backbone.frozen_stages >= 0 or backbone.norm == "frozen")


def print_end(
    workdir: Path, log: RunLog | QuietLog, last_step: int, patience: Patience, console: Console
) -> None:
    """Print where the results are and, if steps are left, how to continue."""
    last = last_saved(workdir)
    if last is not None:
        say(console, f"results are in {workdir}: checkpoints/, metrics.jsonl and event files")
    if patience.is_over or (last is not None and last.step == last_step):
        return
    if last is None:
        remedy = "No checkpoint was saved."
    else:
        age = describe_duration(time.time() - last.saved_at)
        remedy = (
            f"The last checkpoint is of step {last.step}, saved {age} ago. Use --resume to "
            "continue from there."
        )
    say(console, f"stopped after step {log.done} of {last_step}. {remedy}")


@contextmanager
def timed(console: Console, activity: str) -> Iterator[None]:
    """Print what the block does, and how long it took if that was more than a second."""
    say(console, activity)
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    if seconds > 1:
        say(console, f"  took {seconds:.1f} s")
