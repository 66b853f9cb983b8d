"""The training step on all local devices, and its matching and sampling alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from rpn_jax.benchmark.device import Peaks
from rpn_jax.benchmark.figures import Row, program_columns, roofline_columns, timing_columns
from rpn_jax.benchmark.inputs import Canvas, make_batch, output_shapes
from rpn_jax.benchmark.timing import Call, Effort, compile_program, count_flops, time_calls
from rpn_jax.config import Config
from rpn_jax.models import variable_shapes
from rpn_jax.models.rpn.targets import AnchorTargets, batch_targets
from rpn_jax.training.objectives import rpn_loss_function
from rpn_jax.training.optim import build_optimizer, trainable_parameters
from rpn_jax.training.step import (
    DEVICE_AXIS,
    LossFunction,
    Metrics,
    TrainState,
    device_step,
    initial_state,
    make_step,
    replicate,
    split_batch,
)

if TYPE_CHECKING:
    import optax
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

    from rpn_jax.structures import Batch, Variables

STEP = "training step"
BOXES = 12
STEPS_PER_EPOCH = 10_000
"""The rate stays in its warm-up, so that random weights do not diverge."""


def training_rows(
    config: Config,
    variables: Variables,
    batch_size: int,
    canvas: Canvas,
    peaks: Peaks,
    effort: Effort,
) -> tuple[list[Row], dict[str, Call]]:
    """The real step: forward, matching, sampling, losses, backward, gradients' mean, SGD.

    ``batch_size`` pictures of `BOXES` boxes each, over all local devices; memory is a device's.
    Its row, and by the name of its stage the call that was timed, to be timed beside others.

    Raises:
      UserError: the batch is no multiple of the number of devices.
    """
    parts = _step_parts(config, variables, batch_size)
    step = make_step(*parts, seed=0)
    batch = split_batch(make_batch(batch_size, canvas, BOXES, seed=0))
    # A copy: the step donates its state, and the variables are still needed.
    state = replicate(jax.tree.map(jnp.copy, initial_state(variables, parts.optimizer)))
    flops = count_flops(_without_pmap(parts), state, batch)
    program = compile_program(step, state, batch, flops=flops and flops / jax.local_device_count())

    def one_step() -> tuple[TrainState, Metrics]:
        nonlocal state
        state, metrics = program.run(state, batch)
        return state, metrics

    timing = time_calls(one_step, effort)
    row = {
        "stage": STEP,
        **timing_columns(timing, batch_size),
        **roofline_columns(program, timing, batch_size // jax.local_device_count(), peaks),
        **program_columns(program),
    }
    return [row], {STEP: one_step}


def step_program(
    config: Config, batch_size: int, canvas: Canvas
) -> tuple[jax.stages.Wrapped, tuple[TrainState, Batch]]:
    """The step of a single device, to be compiled for any, and the shapes that it takes."""
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
    trainable = trainable_parameters(variables["params"], config.model.backbone)
    optimizer, schedule = build_optimizer(config.optim, trainable, STEPS_PER_EPOCH, batch_size)
    return _StepParts(rpn_loss_function(config), optimizer, schedule)


def _without_pmap(parts: _StepParts) -> jax.stages.Wrapped:
    """The step of all devices on one: the same work, for what takes no `pmap`-ed function."""
    step = device_step(*parts, seed=0)
    all_devices = jax.vmap(step, in_axes=(None, 0), out_axes=None, axis_name=DEVICE_AXIS)
    return jax.jit(all_devices, donate_argnums=0)


def matching_row(config: Config, canvas: Canvas, boxes: int, effort: Effort) -> Row:
    """Targets of one picture's anchors (`losses.batch_targets`), with ``boxes`` boxes."""
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
