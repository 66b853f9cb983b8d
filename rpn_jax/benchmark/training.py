"""Measure the training step, and matching and sampling by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rpn_jax.benchmark.device import Peaks
from rpn_jax.benchmark.figures import Row, program_columns, roofline_columns, timing_columns
from rpn_jax.benchmark.inputs import Canvas, make_batch, output_shapes
from rpn_jax.benchmark.second_stage import (
    ROI_ALIGN_GRADIENT,
    roi_align_function,
    roi_align_gradient_function,
    second_stage_inputs,
)
from rpn_jax.benchmark.timing import (
    Call,
    Effort,
    Program,
    Timing,
    compile_program,
    count_flops,
    time_calls,
)
from rpn_jax.config import Config
from rpn_jax.devices import devices_for_batch
from rpn_jax.models import variable_shapes
from rpn_jax.models.rpn.targets import AnchorTargets, batch_targets
from rpn_jax.training.gradients import DEVICE_AXIS, LossFunction, Metrics
from rpn_jax.training.objectives import loss_function_of
from rpn_jax.training.optim import detector_optimizer
from rpn_jax.training.step import TrainState, device_step, initial_state, make_step

if TYPE_CHECKING:
    import optax
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

    from rpn_jax.structures import Batch, Variables

STEP = "training step"
BOXES = 12
STEPS_PER_EPOCH = 10_000
"""So many that the learning rate stays in its warm-up. Random weights would diverge at the full
rate."""


@dataclass(frozen=True)
class TimedStep:
    """A training step that was compiled and timed."""

    program: Program
    """The step of all used devices. FLOPs and memory are those of one device."""
    timing: Timing
    devices: int
    """Number of devices that share the batch."""
    call: Call
    """The call that was timed."""


def training_rows(
    config: Config,
    variables: Variables,
    batch_size: int,
    canvas: Canvas,
    peaks: Peaks,
    effort: Effort,
) -> tuple[list[Row], dict[str, Call]]:
    """Measure the real training step, see `time_training`, and for a detector RoIAlign in it.

    Returns:
      The row of the step first, and by stage the calls that were timed, so that they can be timed
      again in turns with other programs.
    """
    step = time_training(config, variables, batch_size, canvas, effort)
    row = {
        "stage": STEP,
        "devices": step.devices,
        **timing_columns(step.timing, batch_size),
        **roofline_columns(step.program, step.timing, batch_size // step.devices, peaks),
        **program_columns(step.program),
    }
    rows, calls = [row], {STEP: step.call}
    if config.model.roi is not None:
        of_roi_align, calls[ROI_ALIGN_GRADIENT] = _roi_align_row(config, batch_size, canvas, effort)
        rows.append(of_roi_align)
    return rows, calls


def time_training(
    config: Config, variables: Variables, batch_size: int, canvas: Canvas, effort: Effort
) -> TimedStep:
    """Time forward pass, matching, sampling, losses, backward pass, gradient average and SGD.

    The batch has ``batch_size`` pictures with `BOXES` boxes each, shared by `devices_for_batch`.
    Each device takes its pictures at once, whatever ``config.train.gradient_parts`` says.
    """
    parts = _step_parts(config, variables, batch_size)
    devices = devices_for_batch(batch_size)
    mesh = Mesh(np.array(devices), (DEVICE_AXIS,))
    batch = jax.tree.map(
        lambda leaf: leaf.reshape(len(devices), -1, *leaf.shape[1:]),
        make_batch(batch_size, canvas, BOXES, seed=0),
    )
    batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(DEVICE_AXIS)))
    # The step donates its state. Copy it, because the caller still needs the variables.
    state = jax.tree.map(jnp.copy, initial_state(variables, parts.optimizer))
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    flops = count_flops(_without_pmap(parts), state, batch)
    program = compile_program(
        make_step(*parts, seed=0, devices=devices),
        state,
        batch,
        flops=flops and flops / len(devices),
    )

    def one_step() -> tuple[TrainState, Metrics]:
        nonlocal state
        state, metrics = program.run(state, batch)
        return state, metrics

    return TimedStep(program, time_calls(one_step, effort), len(devices), one_step)


def _roi_align_row(
    config: Config, batch_size: int, canvas: Canvas, effort: Effort
) -> tuple[Row, Call]:
    """Measure RoIAlign of the sampled boxes and its gradient, on one device."""
    inputs = second_stage_inputs(config, batch_size, canvas)
    boxes = inputs.boxes_xyxy[:, : config.roi_loss.samples_per_image or None]
    pooled = roi_align_function(config)(inputs.levels, boxes)
    program = compile_program(roi_align_gradient_function(config), inputs.levels, boxes, pooled)
    call = partial(program.run, inputs.levels, boxes, pooled)
    timing = time_calls(call, effort)
    columns = timing_columns(timing, batch_size) | program_columns(program)
    return {"stage": ROI_ALIGN_GRADIENT, "devices": 1, **columns}, call


def step_program(
    config: Config, batch_size: int, canvas: Canvas
) -> tuple[jax.stages.Wrapped, tuple[TrainState, Batch]]:
    """Return the step of a single device and the shapes of its arguments, to compile anywhere."""
    variables = variable_shapes(config)
    parts = _step_parts(config, variables, batch_size)
    state = jax.eval_shape(lambda variables: initial_state(variables, parts.optimizer), variables)
    batch = make_batch(batch_size, canvas, BOXES, seed=0)
    of_one_device = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[None], batch))
    return _without_pmap(parts), (state, of_one_device)


class _StepParts(NamedTuple):
    loss_function: LossFunction
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule


def _step_parts(config: Config, variables: Variables, batch_size: int) -> _StepParts:
    optimizer, schedule = detector_optimizer(
        config, variables["params"], STEPS_PER_EPOCH, batch_size
    )
    return _StepParts(loss_function_of(config), optimizer, schedule)


def _without_pmap(parts: _StepParts) -> jax.stages.Wrapped:
    """Return the step of all devices as one jitted program: the same work without `pmap`."""
    step = device_step(*parts, seed=0)
    all_devices = jax.vmap(step, in_axes=(None, 0), out_axes=None, axis_name=DEVICE_AXIS)
    return jax.jit(all_devices, donate_argnums=0)


def matching_row(config: Config, canvas: Canvas, boxes: int, effort: Effort) -> Row:
    """Measure the targets of one picture's anchors (`batch_targets`), with ``boxes`` boxes."""
    batch = make_batch(1, canvas, boxes, seed=0)
    level_shapes = output_shapes(config, 1, canvas).level_shapes

    @jax.jit
    def targets(
        boxes_xyxy: Float[Array, "1 G 4"],
        box_mask: Bool[Array, "1 G"],
        image_sizes: Int[Array, "1 2"],
        rng: PRNGKeyArray,
    ) -> AnchorTargets:
        return batch_targets(config, level_shapes, boxes_xyxy, box_mask, image_sizes, rng)

    arguments = (batch.boxes_xyxy, batch.box_mask, batch.image_sizes, jax.random.key(0))
    program = compile_program(targets, *arguments)
    timing = time_calls(lambda: program.run(*arguments), effort)
    result = program.run(*arguments)
    return {
        "anchors": result.positive.size,
        "boxes": boxes,
        **timing_columns(timing, 1),
        "positives": int(jnp.sum(result.positive)),
        "negatives": int(jnp.sum(result.negative)),
        **program_columns(program),
    }
