"""Section 'training': losses of a few steps, the same twice, and a run that is resumed.

A GPU also trains a detector twice. That takes too long on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
import optax

from rpn_jax.benchmark.figures import Row
from rpn_jax.benchmark.inputs import make_batch
from rpn_jax.config import Config, Precision, load_config, replace, with_precision
from rpn_jax.models import build_detector, init_variables
from rpn_jax.structures import Batch
from rpn_jax.training.gradients import DEVICE_AXIS
from rpn_jax.training.objectives import loss_function_of
from rpn_jax.training.optim import make_optimizer, trainable_parameters
from rpn_jax.training.step import TrainState, continued_state, device_step, initial_state
from rpn_jax.weights.checkpoints import Checkpoints, restore_newest
from tools.gpu.forms import use_default_forms

CONFIG, DETECTOR = "rpn_demo", "faster-rcnn_demo"
BATCHES = 4
"""Different batches, used in turns."""
BOXES = 3
LEARNING_RATE = 0.005
FIRST_LOSS_TOLERANCE = 1e-4
LOSS_TOLERANCE = 0.02
"""Largest relative difference of a loss. Rounding differences grow from step to step."""


def rows(out: Path, small: bool, tiny: bool) -> Iterator[Row]:
    """Yield a row for each comparison."""
    steps = 2 if tiny else 6 if small else 30
    config = load_config(CONFIG)
    canvas = (64, 64) if tiny else config.data.canvases[0]
    batches = [make_batch(2 if small else 8, canvas, BOXES, seed) for seed in range(BATCHES)]
    (cpu, *_) = jax.local_devices(backend="cpu")
    on_cpu, _ = _Run(config, "float32").losses(batches, steps, cpu)
    if jax.default_backend() == "cpu":
        use_default_forms()
    device = jax.local_devices()[0]
    run = _Run(config, "float32")
    losses, _ = run.losses(batches, steps, device)
    yield _compared("first loss against the CPU's", losses[:1], on_cpu[:1], FIRST_LOSS_TOLERANCE)
    yield _compared("all losses against the CPU's", losses, on_cpu, LOSS_TOLERANCE)
    again, _ = run.losses(batches, steps, device)
    yield _compared("two runs", again, losses, 0.0)
    with TemporaryDirectory(dir=out) as folder:
        resumed = run.resumed_losses(batches, steps, device, Path(folder))
    yield _compared("a run that was saved and resumed", resumed, losses, 0.0)
    if tiny:
        return
    bfloat16, _ = _Run(config, "bfloat16").losses(batches, steps, device)
    yield {
        "what": "losses in bfloat16",
        "steps": len(bfloat16),
        "first": bfloat16[0],
        "last": bfloat16[-1],
        "passed": bool(np.all(np.isfinite(bfloat16))),
    }
    if small:
        return
    detector = _Run(load_config(DETECTOR), "float32")
    losses, _ = detector.losses(batches, steps, device)
    again, _ = detector.losses(batches, steps, device)
    yield _compared(f"two runs of {DETECTOR}", again, losses, 0.0)


def _compared(what: str, losses: Sequence[float], others: Sequence[float], tolerance: float) -> Row:
    difference = np.abs(np.subtract(losses, others)) / np.abs(others)
    return {
        "what": what,
        "steps": len(losses),
        "first": losses[0],
        "last": losses[-1],
        "largest_difference": float(difference.max()),
        "same_bits": bool(np.array_equal(losses, others)),
        "passed": bool(np.all(difference <= tolerance)),
    }


class _Run:
    """The training step of a config, on one device."""

    def __init__(self, config: Config, precision: Precision) -> None:
        config = with_precision(config, precision)
        variables = jax.device_get(init_variables(config))
        schedule = optax.constant_schedule(LEARNING_RATE)
        optim = replace(config.optim, learning_rate=LEARNING_RATE)
        trainable = trainable_parameters(variables["params"], build_detector(config.model).backbone)
        optimizer = make_optimizer(optim, schedule, trainable)
        self._start = jax.device_get(initial_state(variables, optimizer))
        step = device_step(loss_function_of(config), optimizer, schedule, seed=0)
        self._step = jax.jit(
            jax.vmap(step, in_axes=(None, 0), out_axes=None, axis_name=DEVICE_AXIS)
        )

    def losses(
        self, batches: list[Batch], steps: int, device: jax.Device
    ) -> tuple[list[float], TrainState]:
        """Return the loss of each step from the start, and the last state."""
        return self._continue(self._start, batches, steps, device)

    def resumed_losses(
        self, batches: list[Batch], steps: int, device: jax.Device, folder: Path
    ) -> list[float]:
        """Return the losses of a run that is saved halfway and restored."""
        half = steps // 2
        losses, state = self.losses(batches, half, device)
        with Checkpoints(folder, keep_last=1, epoch_steps=steps, best_by="loss") as checkpoints:
            checkpoints.save(half, state.variables, state.opt_state)
        saved = restore_newest(folder, state.variables, state.opt_state)
        restored = continued_state(half, saved.variables, saved.opt_state)
        return losses + self._continue(restored, batches, steps - half, device)[0]

    def _continue(
        self, state: TrainState, batches: list[Batch], steps: int, device: jax.Device
    ) -> tuple[list[float], TrainState]:
        first = int(state.step)
        state = jax.device_put(state, device)
        losses = []
        for number in range(first, first + steps):
            batch: Any = jax.tree.map(lambda leaf: leaf[None], batches[number % BATCHES])
            state, metrics = self._step(state, jax.device_put(batch, device))
            losses.append(float(metrics["loss"]))
        return losses, state
