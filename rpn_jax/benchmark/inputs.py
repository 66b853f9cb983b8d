"""Generate inputs from a seed: pictures, boxes, features, and the outputs of both stages' heads.

The time of NMS depends on the head outputs, and random weights do not give the outputs of a trained
network. Post-processing therefore gets generated outputs that look like a trained head's: near an
object many anchors have high scores and point at the same box. Elsewhere scores are low and boxes
are random. The second stage gets the proposals that follow from them.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
import numpy as np

from rpn_jax.config import AnchorConfig, Config
from rpn_jax.models import build_detector, variable_shapes
from rpn_jax.models.roi import DELTA_STDS
from rpn_jax.models.rpn.proposals import propose
from rpn_jax.ops import box_area, box_iou, encode_boxes, grid_anchors
from rpn_jax.ops.anchors import LevelShapes
from rpn_jax.structures import Batch, Proposals, RoIOutputs, RPNOutputs

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt8

    Levels = tuple[Float[Array, "B _ _ C"], ...]

Canvas = tuple[int, int]
"""(height, width) in pixels. The pictures fill the canvas."""

OBJECTS = 40
"""Number of objects per picture in generated head outputs."""
SMALLEST_OBJECT = 16
"""Smallest side in pixels. The largest is the shorter side of the picture."""
DELTA_NOISE = 0.15
"""Standard deviation of the first stage's generated deltas."""
ROI_DELTA_NOISE = 0.3
"""Standard deviation of the second stage's generated deltas, which are divided by `DELTA_STDS`."""


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


def object_boxes(count: int, canvas: Canvas, seed: int) -> Float[Array, "B O 4"]:
    """Return the `OBJECTS` generated objects of each picture, f32 xyxy."""
    boxes = np.stack([make_boxes(OBJECTS, canvas, seed + index) for index in range(count)])
    return jnp.asarray(boxes)


@cache
def feature_shapes(config: Config, count: int, canvas: Canvas) -> Levels:
    """Return the shapes and dtypes of the levels that the heads receive, without computing."""
    images = jax.ShapeDtypeStruct((count, *canvas, 3), jnp.float32)
    apply = partial(build_detector(config.model).apply, method="features")
    return cast("Levels", jax.eval_shape(apply, variable_shapes(config), images))


def make_features(config: Config, count: int, canvas: Canvas, seed: int) -> Levels:
    """Return normally distributed levels for the heads, on the first device."""
    shapes = feature_shapes(config, count, canvas)

    @jax.jit
    def draw(key: Array) -> Levels:
        keys = jax.random.split(key, len(shapes))
        return tuple(
            jax.random.normal(key, level.shape, level.dtype)
            for key, level in zip(keys, shapes, strict=True)
        )

    return draw(jax.random.key(seed))


@cache
def output_shapes(config: Config, count: int, canvas: Canvas) -> RPNOutputs:
    """Return the shapes of the first stage's outputs without running it."""
    apply = partial(build_detector(config.model).apply, method="rpn_outputs")
    levels = feature_shapes(config, count, canvas)
    return cast(RPNOutputs, jax.eval_shape(apply, variable_shapes(config), levels))


def make_outputs(config: Config, count: int, canvas: Canvas, seed: int) -> RPNOutputs:
    """Return head outputs for `OBJECTS` generated objects per picture, f32 on the first device."""
    level_shapes = tuple(output_shapes(config, count, canvas).level_shapes)
    objects = object_boxes(count, canvas, seed)
    return _outputs(config.model.rpn.anchors, level_shapes, objects, jax.random.key(seed))


@partial(jax.jit, static_argnums=(0, 1))
def _outputs(
    anchors: AnchorConfig,
    level_shapes: tuple[tuple[int, int], ...],
    objects_xyxy: Float[Array, "B O 4"],
    key: Array,
) -> RPNOutputs:
    count = len(objects_xyxy)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count))
    of_picture = partial(_picture_outputs, anchors, level_shapes)
    outputs = jax.vmap(of_picture)(objects_xyxy, keys)
    cells = [(count, *shape, anchors.per_cell) for shape in level_shapes]
    return RPNOutputs(
        tuple(x.reshape(shape) for x, shape in zip(outputs.objectness, cells, strict=True)),
        tuple(x.reshape(*shape, 4) for x, shape in zip(outputs.deltas, cells, strict=True)),
    )


def make_proposals(config: Config, count: int, canvas: Canvas, seed: int) -> Proposals:
    """Return the proposals that follow from `make_outputs`, in pixels of the canvas."""
    image_sizes = jnp.tile(jnp.array(canvas, jnp.int32), (count, 1))
    outputs = make_outputs(config, count, canvas, seed)
    return jax.jit(partial(propose, config))(outputs, image_sizes)


@partial(jax.jit, static_argnames=("num_classes", "seed"))
def make_roi_outputs(
    num_classes: int,
    boxes_xyxy: Float[Array, "B N 4"],
    objects_xyxy: Float[Array, "B O 4"],
    seed: int,
) -> RoIOutputs:
    """Return outputs of the second stage that find the objects.

    The class of object k is k modulo the number of classes. A box that overlaps an object well has
    a high score for its class, and deltas that point at it. Elsewhere the background has the
    highest score.
    """
    logit_key, delta_key = jax.random.split(jax.random.key(seed))
    iou = jax.vmap(box_iou)(boxes_xyxy, objects_xyxy)
    nearest, best_iou = jnp.argmax(iou, axis=-1), jnp.max(iou, axis=-1)
    logits = jax.random.normal(logit_key, (*best_iou.shape, num_classes + 1)) - 3
    logits = logits.at[..., num_classes].add(7)
    of_class = jax.nn.one_hot(nearest % num_classes, num_classes + 1)
    logits = logits + of_class * (3 + 10 * best_iou)[..., None]
    targets = jnp.take_along_axis(objects_xyxy, nearest[..., None], axis=1)
    # Padding has no area and cannot be encoded.
    start = jnp.where(box_area(boxes_xyxy)[..., None] > 0, boxes_xyxy, targets)
    towards = encode_boxes(start, targets) / jnp.array(DELTA_STDS)
    noise = ROI_DELTA_NOISE * jax.random.normal(delta_key, (*best_iou.shape, num_classes, 4))
    return RoIOutputs(logits, towards[:, :, None] + noise)


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
