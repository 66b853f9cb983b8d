"""The loop around the training step: compile a program for each canvas, then run steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import jax
import numpy as np

from rpn_jax.devices import devices_for_batch
from rpn_jax.errors import UserError
from rpn_jax.hosts.exchange import fetch
from rpn_jax.structures import Batch
from rpn_jax.training.gradients import Metrics
from rpn_jax.training.step import TrainState, batch_sharding

CompiledSteps = dict[tuple[int, int], jax.stages.Compiled]
"""The compiled step of each canvas (height, width)."""


class NotFiniteError(UserError):
    """The loss or the gradient of a step is not finite.

    Args:
      message: error message.
      step: number of the step, counted from 1 as in the log.
      state: state before the step.
      batch: batch of the step, without device axis, as NumPy arrays.
    """

    def __init__(self, message: str, step: int, state: TrainState, batch: Batch) -> None:
        super().__init__(message)
        self.step = step
        self.state = state
        self.batch = batch


class Observer(Protocol):
    """Receives the progress of the loop. `rpn_jax.training.log` shows and stores it."""

    def compiling(self, canvas: tuple[int, int], number: int, total: int) -> None:
        """Called before the step is compiled for a canvas (height, width)."""

    def compiled(self, seconds: float) -> None:
        """Called after each compilation, with its duration."""

    def waited(self, seconds: float) -> None:
        """Called if the devices had nothing to do when a batch arrived, with the time it took."""

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Called after step number ``step``, counted from 0."""


def compile_steps(
    step: jax.stages.Wrapped,
    state: TrainState,
    batch_shapes: Sequence[Batch],
    observer: Observer,
) -> CompiledSteps:
    """Compile the step for every canvas.

    Args:
      step: the function that `make_step` returned.
      state: a state with the shapes of the run.
      batch_shapes: for each canvas a `Batch` of `jax.ShapeDtypeStruct`, without device axis.
      observer: receives the canvas and the duration of each compilation.
    """
    compiled: CompiledSteps = {}
    for number, shapes in enumerate(batch_shapes, start=1):
        canvas = (int(shapes.images.shape[1]), int(shapes.images.shape[2]))
        observer.compiling(canvas, number, len(batch_shapes))
        start = time.perf_counter()
        compiled[canvas] = step.lower(*_arguments(state, shapes)).compile()
        observer.compiled(time.perf_counter() - start)
    return compiled


def run_steps(
    compiled: CompiledSteps,
    state: TrainState,
    batches: Iterator[Batch],
    steps: int,
    observer: Observer,
    picture_names: Callable[[np.ndarray], list[str]],
    should_stop: Callable[[], bool],
    save_due: Callable[[int], bool],
    save: Callable[[TrainState], None],
) -> TrainState:
    """Run up to ``steps`` steps, save the state and return it.

    The figures of a step are read while the next step runs, so that the devices do not wait for
    the host.

    Args:
      compiled: the programs of `compile_steps`.
      state: state to start from. Its memory is reused.
      batches: batches that are already on the devices.
      steps: number of steps.
      observer: receives the figures of each step.
      picture_names: returns the file names of pictures by their positions in the dataset.
      should_stop: asked after each step. True ends the loop early.
      save_due: asked after each step with the number of finished steps. True saves the state.
      save: called with a state when a save is due, and with the last state. If a batch cannot be
        loaded, the state before it is saved, and then the error is raised.

    Raises:
      NotFiniteError: the loss or the gradient of a step is not finite. The state is not saved
        then. It is the state before that step.
    """
    first_step = int(state.step)
    pending: list[tuple[int, Metrics, Batch]] = []

    def report() -> None:
        _report(*pending.pop(), state, observer, picture_names)

    def finish() -> None:
        if pending:
            report()
            save(state)

    for step in range(first_step, first_step + steps):
        asked = time.perf_counter()
        try:
            batch = next(batches)
        except Exception:
            finish()
            raise
        if pending and pending[0][1]["loss"].is_ready():
            observer.waited(time.perf_counter() - asked)
        _, _, height, width, _ = batch.images.shape
        state, metrics = compiled[height, width](state, batch)
        if pending:
            report()
        pending.append((step, metrics, batch))
        if should_stop():
            break
        if save_due(step + 1):
            finish()
    finish()
    return state


def _report(
    step: int,
    metrics: Metrics,
    batch: Batch,
    state: TrainState,
    observer: Observer,
    picture_names: Callable[[np.ndarray], list[str]],
) -> None:
    values = {key: float(value) for key, value in jax.device_get(metrics).items()}
    # The gradient can overflow one step before the loss does. Checking both names the pictures
    # that caused it, and not those of the next step.
    number = step + 1
    for key in ("loss", "grad_norm"):
        if not math.isfinite(values[key]):
            whole = jax.tree.map(lambda x: np.concatenate(fetch(x)), batch)
            names = ", ".join(picture_names(whole.indices))
            message = (
                f"step {number}: {key} is {values[key]} on the pictures {names}. Try a lower "
                "optim.learning_rate, a longer optim.warmup_steps or an optim.clip_norm."
            )
            raise NotFiniteError(message, number, state, whole)
    observer.step(step, values)


def _arguments(state: TrainState, shapes: Batch) -> tuple[TrainState, Batch]:
    """Return arguments of the step to compile it for."""
    devices = devices_for_batch(shapes.images.shape[0])
    split = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (len(devices), x.shape[0] // len(devices), *x.shape[1:]), x.dtype
        ),
        shapes,
    )
    if jax.process_count() == 1:
        return jax.eval_shape(lambda: state), split
    # With several processes, `pmap` takes only arrays.
    sharding = batch_sharding(devices)
    return state, jax.tree.map(
        lambda x: jax.make_array_from_callback(
            x.shape, sharding, lambda _: np.zeros((1, *x.shape[1:]), x.dtype)
        ),
        split,
    )
