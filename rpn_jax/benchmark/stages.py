"""Measure inference on one device: each stage, and all stages together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from rpn_jax.benchmark.device import Peaks
from rpn_jax.benchmark.figures import Row, program_columns, roofline_columns, timing_columns
from rpn_jax.benchmark.inputs import Canvas, make_batch, make_outputs
from rpn_jax.benchmark.second_stage import (
    BOX_HEAD,
    DETECTIONS,
    ROI_ALIGN,
    SECOND_STAGE,
    box_head_function,
    detections_function,
    roi_align_function,
    second_stage_function,
    second_stage_inputs,
)
from rpn_jax.benchmark.timing import (
    Call,
    Effort,
    Timing,
    compile_program,
    count_flops,
    time_calls,
)
from rpn_jax.config import Config
from rpn_jax.devices import jit_inference
from rpn_jax.inference.forward import (
    detect_pictures,
    prepare_variables,
    propose_pictures,
    run_features,
    run_network,
)
from rpn_jax.models.rpn.proposals import candidates, propose
from rpn_jax.ops import nms_per_level
from rpn_jax.structures import Detections, Proposals

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

    from rpn_jax.structures import Variables


FEATURES = "normalise + features"
"""Up to the pyramid. Measured only for detectors with a second stage."""
NETWORK = "normalise + network"
"""Up to the outputs of the RPN head."""
POST_PROCESSING = "post-processing"
WHOLE = "end to end"

CALLS_IN_FLIGHT = 8


@dataclass(frozen=True)
class Stage:
    """A part of inference that is timed separately."""

    name: str
    function: jax.stages.Wrapped
    arguments: tuple[Any, ...]
    flops: float | None = None
    """Operations, if most of them are convolutions or matrix products and their number is known."""


def inference_rows(
    config: Config,
    variables: Variables,
    batch_size: int,
    canvas: Canvas,
    peaks: Peaks,
    effort: Effort,
) -> tuple[list[Row], dict[str, Call]]:
    """Measure each stage and all stages together, from uint8 pictures to the final boxes.

    Post-processing and its parts get generated head outputs (`inputs.make_outputs`), and so does
    each part of the second stage. "End to end" uses the network's outputs with ``variables``.
    ``boxes_out`` is the mean number of boxes per picture.

    Returns:
      A row for each stage, and by stage the calls that were timed, so that they can be timed again
      in turns with other programs.
    """
    batch = make_batch(batch_size, canvas, boxes=1, seed=0)
    prepared = prepare_variables(config, variables, one_device())
    pictures = (prepared, batch.images, batch.image_sizes)
    heads = (make_outputs(config, batch_size, canvas, seed=0), batch.image_sizes)
    found = candidates_function(config)(*heads)
    whole = whole_arguments(config, variables, batch_size, canvas)
    stages = [
        _counted(NETWORK, network_function(config), pictures),
        Stage("top-k + decode", candidates_function(config), heads),
        Stage("NMS", nms_function(config), found),
        Stage(POST_PROCESSING, post_processing_function(config), heads),
    ]
    if config.model.roi is not None:
        stages.insert(0, _counted(FEATURES, features_function(config), pictures))
        stages += _second_stage(config, prepared, batch_size, canvas)
    stages.append(_counted(WHOLE, whole_function(config), whole))
    rows, calls = [], {}
    for stage in stages:
        row, calls[stage.name] = _measure(stage, batch_size, peaks, effort)
        rows.append(row)
    rows.append(_in_flight_row(calls[WHOLE], batch_size, effort))
    return rows, calls


def whole_row(
    config: Config,
    variables: Variables,
    batch_size: int,
    canvas: Canvas,
    peaks: Peaks,
    effort: Effort,
) -> Row:
    """Measure all stages together, from uint8 pictures to the boxes, one call at a time."""
    arguments = whole_arguments(config, variables, batch_size, canvas)
    stage = _counted(WHOLE, whole_function(config), arguments)
    row, _ = _measure(stage, batch_size, peaks, effort)
    return row


def whole_arguments(
    config: Config, variables: Variables, batch_size: int, canvas: Canvas
) -> tuple[Any, ...]:
    """Return arguments for `whole_function`, with generated pictures that fill the canvas."""
    batch = make_batch(batch_size, canvas, boxes=1, seed=0)
    prepared = prepare_variables(config, variables, one_device())
    return prepared, batch.images, batch.image_sizes, batch.scale_factors


def one_device() -> SingleDeviceSharding:
    """Return the placement of weights for inference on one device."""
    return SingleDeviceSharding(jax.local_devices()[0])


def time_in_flight(call: Call, effort: Effort) -> Timing:
    """Time `CALLS_IN_FLIGHT` calls that are started without waiting for each other."""
    return time_calls(lambda: [call() for _ in range(CALLS_IN_FLIGHT)], effort)


def features_function(config: Config) -> jax.stages.Wrapped:
    """Return a function of prepared weights, uint8 pictures and sizes [B, 2] to the levels."""
    return jit_inference(partial(run_features, config))


def network_function(config: Config) -> jax.stages.Wrapped:
    """Return a function of prepared weights, uint8 pictures and sizes [B, 2] to `RPNOutputs`."""
    return jit_inference(partial(run_network, config))


def whole_function(config: Config) -> jax.stages.Wrapped:
    """Return a function of weights, uint8 pictures, sizes and resize factors to the final boxes.

    They are `Detections` if the model has a second stage, and `Proposals` if not.
    """
    forward = propose_pictures if config.model.roi is None else detect_pictures
    return jit_inference(partial(forward, config))


def candidates_function(config: Config) -> jax.stages.Wrapped:
    """Return a function of `RPNOutputs` and sizes to boxes, logits and validity [B, L, k]."""
    return jit_inference(lambda outputs, image_sizes: candidates(config, outputs, image_sizes))


def nms_function(config: Config) -> jax.stages.Wrapped:
    """Return a function of candidates [B, L, k] to the indices of the kept ones, [B, N]."""
    settings = config.rpn_proposals

    @jit_inference
    def kept(
        boxes: Float[Array, "B L k 4"], logits: Float[Array, "B L k"], exists: Bool[Array, "B L k"]
    ) -> tuple[Int[Array, "B N"], Bool[Array, "B N"]]:
        return nms_per_level(boxes, logits, exists, settings.nms_iou, settings.max_proposals)

    return kept


def post_processing_function(config: Config) -> jax.stages.Wrapped:
    """Return a function of `RPNOutputs` and sizes [B, 2] to `Proposals`."""
    return jit_inference(lambda outputs, image_sizes: propose(config, outputs, image_sizes))


def _counted(name: str, function: jax.stages.Wrapped, arguments: tuple[Any, ...]) -> Stage:
    """Return a stage with the operations of its convolutions and matrix products."""
    return Stage(name, function, arguments, count_flops(function, *arguments))


def _second_stage(
    config: Config, prepared: Variables, batch_size: int, canvas: Canvas
) -> list[Stage]:
    inputs = second_stage_inputs(config, batch_size, canvas)
    boxes = (inputs.boxes_xyxy, inputs.box_mask, inputs.image_sizes)
    pooled = roi_align_function(config)(inputs.levels, inputs.boxes_xyxy)
    return [
        Stage(ROI_ALIGN, roi_align_function(config), (inputs.levels, inputs.boxes_xyxy)),
        _counted(BOX_HEAD, box_head_function(config), (prepared, pooled)),
        Stage(DETECTIONS, detections_function(config), (inputs.outputs, *boxes)),
        Stage(SECOND_STAGE, second_stage_function(config), (prepared, inputs.levels, *boxes)),
    ]


def _measure(stage: Stage, batch_size: int, peaks: Peaks, effort: Effort) -> tuple[Row, Call]:
    """Return the row of a stage, and the call that was timed."""
    program = compile_program(stage.function, *stage.arguments, flops=stage.flops)
    call = partial(program.run, *stage.arguments)
    timing = time_calls(call, effort)
    row: Row = {
        "stage": stage.name,
        **timing_columns(timing, batch_size),
        **roofline_columns(program, timing, batch_size, peaks),
    }
    result = call()
    if isinstance(result, Proposals | Detections):
        row["boxes_out"] = float(jnp.sum(result.valid)) / batch_size
    return row | program_columns(program), call


def _in_flight_row(call: Call, batch_size: int, effort: Effort) -> Row:
    timing = time_in_flight(call, effort)
    name = f"{WHOLE}, {CALLS_IN_FLIGHT} calls in flight"
    return {"stage": name, **timing_columns(timing, CALLS_IN_FLIGHT * batch_size)}
