"""Generate inputs from a seed: pictures, boxes, head outputs and candidates.

The time of NMS depends on the head outputs, and random weights do not give the outputs of a trained
network. Post-processing therefore gets generated outputs that look like a trained head's: near an
object many anchors have high scores and point at the same box. Elsewhere scores are low and boxes
are random.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
import numpy as np

from rpn_jax.config import AnchorConfig, Config
from rpn_jax.models import build_detector, variable_shapes
from rpn_jax.ops import box_iou, encode_boxes, grid_anchors
from rpn_jax.ops.anchors import LevelShapes
from rpn_jax.structures import Batch, RPNOutputs, Variables

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt8

Canvas = tuple[int, int]
"""(height, width) in pixels. The pictures fill the canvas."""

OBJECTS = 40
"""Number of objects per picture in generated head outputs."""
SMALLEST_OBJECT = 16
"""Smallest side in pixels. The largest is the shorter side of the picture."""
DELTA_NOISE = 0.15
"""Standard deviation of generated deltas."""


def make_pictures(count: int, canvas: Canvas, seed: int) -> UInt8[np.ndarray, "B H W 3"]:
    """Return pictures of coloured blocks with noise, whose JPEG files have a realistic size."""
    rng = np.random.default_rng(seed)
    height, width = canvas
    blocks = rng.integers(0, 256, (count, -(-height // 32), -(-width // 32), 3))
    smooth = blocks.repeat(32, axis=1).repeat(32, axis=2)[:, :height, :width]
    noisy = smooth + rng.normal(0, 12, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def make_boxes(count: int, canvas: Canvas, seed: int) -> Float[np.ndarray, "G 4"]:
    """Return boxes inside a canvas, f32 xyxy, with log-uniform sides."""
    rng = np.random.default_rng(seed)
    height, width = canvas
    largest = min(canvas)
    sides = np.exp(rng.uniform(np.log(min(SMALLEST_OBJECT, largest)), np.log(largest), (count, 2)))
    corners = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - sides)
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def make_batch(count: int, canvas: Canvas, boxes: int, seed: int) -> Batch:
    """Return a batch of pictures that fill the canvas, with ``boxes`` boxes each."""
    truth = np.stack([make_boxes(boxes, canvas, seed + index) for index in range(count)])
    return Batch(
        images=jnp.asarray(make_pictures(count, canvas, seed)),
        image_sizes=jnp.asarray(np.tile(canvas, (count, 1)), jnp.int32),
        scale_factors=jnp.ones((count, 2), jnp.float32),
        boxes_xyxy=jnp.asarray(truth),
        labels=jnp.zeros((count, boxes), jnp.int32),
        box_mask=jnp.ones((count, boxes), bool),
        indices=jnp.arange(count, dtype=jnp.int32),
    )


def output_shapes(config: Config, count: int, canvas: Canvas) -> RPNOutputs:
    """Return the shapes of the first stage's outputs without running it."""
    images = jax.ShapeDtypeStruct((count, *canvas, 3), jnp.float32)
    model = build_detector(config.model)

    def first_stage(variables: Variables, images: Array) -> RPNOutputs:
        levels = model.apply(variables, images, method="features")
        return cast(RPNOutputs, model.apply(variables, levels, method="rpn_outputs"))

    return jax.eval_shape(first_stage, variable_shapes(config), images)


def make_outputs(config: Config, count: int, canvas: Canvas, seed: int) -> RPNOutputs:
    """Return head outputs for `OBJECTS` generated objects per picture, f32 on the first device."""
    shapes = output_shapes(config, count, canvas)
    key = jax.random.key(seed)
    pictures = [
        _picture_outputs(
            config.model.rpn.anchors,
            shapes.level_shapes,
            jnp.asarray(make_boxes(OBJECTS, canvas, seed + index)),
            jax.random.fold_in(key, index),
        )
        for index in range(count)
    ]
    return jax.tree.map(
        lambda shape, *leaves: jnp.stack(leaves).reshape(shape.shape), shapes, *pictures
    )


def _picture_outputs(
    anchor_config: AnchorConfig,
    level_shapes: LevelShapes,
    objects_xyxy: Float[Array, "G 4"],
    key: Array,
) -> RPNOutputs:
    """Return the outputs of one picture, with flat levels."""
    objectness, deltas = [], []
    for level, anchors in enumerate(grid_anchors(level_shapes, anchor_config)):
        logit_key, delta_key = jax.random.split(jax.random.fold_in(key, level))
        iou = box_iou(anchors, objects_xyxy)
        best_iou = jnp.max(iou, axis=1)
        towards = encode_boxes(anchors, objects_xyxy[jnp.argmax(iou, axis=1)])
        noise = DELTA_NOISE * jax.random.normal(delta_key, anchors.shape)
        deltas.append(jnp.where(best_iou[:, None] > 0.3, towards, 0.0) + noise)
        logits = 10 * best_iou - 6 + jax.random.normal(logit_key, best_iou.shape)
        objectness.append(logits)
    return RPNOutputs(tuple(objectness), tuple(deltas))


def equal_boxes(count: int) -> Float[Array, "N 4"]:
    """Return copies of one box. The first suppresses all others."""
    return jnp.tile(jnp.array([0.0, 0.0, 32.0, 32.0]), (count, 1))


def chained_boxes(count: int) -> Float[Array, "N 4"]:
    """Return boxes that overlap the next one with IoU 0.78 and the one after that with 0.6.

    With a threshold between the two, each box would suppress the next one, so every second box is
    kept. Whether a box is kept depends on all boxes before it. An iteration to the fixed point
    then needs the largest number of rounds.
    """
    x1 = jnp.arange(count, dtype=jnp.float32) * 4
    zeros = jnp.zeros_like(x1)
    return jnp.stack([x1, zeros, x1 + 32, zeros + 32], axis=1)
