"""The parts of the second stage that the benchmark times: RoIAlign, the box head and detections."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from rpn_jax.benchmark.inputs import (
    Canvas,
    make_features,
    make_proposals,
    make_roi_outputs,
    object_boxes,
)
from rpn_jax.config import Config
from rpn_jax.devices import jit_inference
from rpn_jax.models import FasterRCNN
from rpn_jax.models.roi.detections import detect
from rpn_jax.structures import Detections, RoIOutputs

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

    from rpn_jax.structures import Variables

    Levels = tuple[Float[Array, "B _ _ C"], ...]

ROI_ALIGN = "RoIAlign"
BOX_HEAD = "box head"
DETECTIONS = "detections: decode + NMS"
SECOND_STAGE = "second stage"
ROI_ALIGN_GRADIENT = "RoIAlign, forward and backward"


class SecondStageInputs(NamedTuple):
    """Generated inputs of the second stage, which look like those of a trained network."""

    levels: Levels
    """Features, normally distributed."""
    boxes_xyxy: Float[Array, "B N 4"]
    """Proposals, f32 pixels. Many lie around the generated objects."""
    box_mask: Bool[Array, "B N"]
    """True where a proposal exists."""
    outputs: RoIOutputs
    """Outputs of the box head, with high scores for the classes of the objects."""
    image_sizes: Int[Array, "B 2"]
    """All pictures fill the canvas."""


def second_stage_inputs(config: Config, count: int, canvas: Canvas) -> SecondStageInputs:
    """Return inputs for ``count`` pictures, the same in every call."""
    assert config.model.roi is not None
    objects = object_boxes(count, canvas, seed=0)
    proposals = make_proposals(config, count, canvas, seed=0)
    return SecondStageInputs(
        levels=make_features(config, count, canvas, seed=0),
        boxes_xyxy=proposals.boxes,
        box_mask=proposals.valid,
        outputs=make_roi_outputs(config.model.roi.num_classes, proposals.boxes, objects, seed=0),
        image_sizes=jnp.tile(jnp.array(canvas, jnp.int32), (count, 1)),
    )


def roi_align_function(config: Config) -> jax.stages.Wrapped:
    """Return a function of levels and boxes to pooled features."""
    return jit_inference(partial(_apply, config, "roi_features", {}))


def box_head_function(config: Config) -> jax.stages.Wrapped:
    """Return a function of weights and pooled features to `RoIOutputs`."""
    return jit_inference(partial(_apply, config, "roi_outputs_of"))


def detections_function(config: Config) -> jax.stages.Wrapped:
    """Return a function of `RoIOutputs`, boxes, mask and picture sizes to `Detections`."""
    return jit_inference(partial(detect, config))


def second_stage_function(config: Config) -> jax.stages.Wrapped:
    """Return a function of weights, levels, boxes, mask and picture sizes to `Detections`."""

    @jit_inference
    def second_stage(
        prepared: Variables,
        levels: Levels,
        boxes_xyxy: Float[Array, "B N 4"],
        box_mask: Bool[Array, "B N"],
        image_sizes: Int[Array, "B 2"],
    ) -> Detections:
        outputs = _apply(config, "roi_outputs", prepared, levels, boxes_xyxy)
        return detect(config, cast(RoIOutputs, outputs), boxes_xyxy, box_mask, image_sizes)

    return second_stage


def roi_align_gradient_function(config: Config) -> jax.stages.Wrapped:
    """Return a function of levels, boxes and a cotangent to pooled features and the gradient.

    The gradient of a linear function does not need its value. The function returns both, so that
    the compiler cannot leave the forward pass out.
    """

    @jax.jit
    def value_and_gradient(
        levels: Levels, boxes_xyxy: Float[Array, "B N 4"], cotangent: Float[Array, "B N P P C"]
    ) -> tuple[Float[Array, "B N P P C"], Levels]:
        pooled, backward = jax.vjp(
            lambda levels: _apply(config, "roi_features", {}, levels, boxes_xyxy), levels
        )
        return pooled, backward(cotangent)[0]

    return value_and_gradient


def _apply(config: Config, method: str, variables: Variables, *arguments: Any) -> Any:
    return FasterRCNN(config.model, folded=True).apply(variables, *arguments, method=method)
