"""What is fed in: pictures, boxes, head outputs and candidates made from a seed.

Random weights say nothing of a trained network's outputs, and the time of NMS depends on them. So
post-processing is fed with outputs as a trained head gives them around objects: near an object many
anchors score high and point at the same box, elsewhere scores are low and boxes lie at random.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from rpn_jax.config import AnchorConfig, Config
from rpn_jax.models import RPN, variable_shapes
from rpn_jax.ops import box_iou, encode_boxes, grid_anchors
from rpn_jax.ops.anchors import LevelShapes
from rpn_jax.structures import Batch, RPNOutputs

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt8

Canvas = tuple[int, int]
"""(height, width) of pictures, which fill it, in pixels."""

OBJECTS = 40
"""Objects a picture that made head outputs point at."""
SMALLEST_OBJECT = 16
"""Pixels; the largest has the picture's shorter side."""
DELTA_NOISE = 0.15
"""Standard deviation of made deltas."""


def make_pictures(count: int, canvas: Canvas, seed: int) -> UInt8[np.ndarray, "B H W 3"]:
    """Coloured blocks with noise: neither flat, which compresses too well, nor noise alone."""
    rng = np.random.default_rng(seed)
    height, width = canvas
    blocks = rng.integers(0, 256, (count, -(-height // 32), -(-width // 32), 3))
    smooth = blocks.repeat(32, axis=1).repeat(32, axis=2)[:, :height, :width]
    noisy = smooth + rng.normal(0, 12, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def make_boxes(count: int, canvas: Canvas, seed: int) -> Float[np.ndarray, "G 4"]:
    """Boxes f32 xyxy inside a canvas, of log-uniform size."""
    rng = np.random.default_rng(seed)
    height, width = canvas
    largest = min(canvas)
    sides = np.exp(rng.uniform(np.log(min(SMALLEST_OBJECT, largest)), np.log(largest), (count, 2)))
    corners = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - sides)
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def make_batch(count: int, canvas: Canvas, boxes: int, seed: int) -> Batch:
    """Pictures with ``boxes`` boxes each, that fill the canvas, on the first device."""
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
    """The shapes of the network's outputs, without computing any."""
    images = jax.ShapeDtypeStruct((count, *canvas, 3), jnp.float32)
    return jax.eval_shape(RPN(config.model).apply, variable_shapes(config), images)


def make_outputs(config: Config, count: int, canvas: Canvas, seed: int) -> RPNOutputs:
    """Head outputs around `OBJECTS` made objects a picture, as f32 arrays on the first device."""
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
    """One picture's outputs, each level flat."""
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
    """One box, many times: the first suppresses all others."""
    return jnp.tile(jnp.array([0.0, 0.0, 32.0, 32.0]), (count, 1))


def chained_boxes(count: int) -> Float[Array, "N 4"]:
    """Each box overlaps the next by an IoU of 0.78 and the one after it by 0.6.

    At a threshold between the two each would suppress the next, so every second one is kept, and
    whether a box stays depends on all boxes before it: the longest way to a fixed point.
    """
    x1 = jnp.arange(count, dtype=jnp.float32) * 4
    zeros = jnp.zeros_like(x1)
    return jnp.stack([x1, zeros, x1 + 32, zeros + 32], axis=1)
