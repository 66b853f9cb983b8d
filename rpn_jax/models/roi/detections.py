"""Detections from the outputs of the second stage (Girshick 2015, section 2.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rpn_jax.config import Config, check_part
from rpn_jax.models.roi import DELTA_STDS
from rpn_jax.ops import clip_boxes, decode_boxes, nms_per_class
from rpn_jax.ops.checks import check_shapes
from rpn_jax.structures import Detections, RoIOutputs

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


def detect(
    config: Config,
    outputs: RoIOutputs,
    boxes_xyxy: Float[Array, "B N 4"],
    box_mask: Bool[Array, "B N"],
    image_sizes: Int[Array, "B 2"],
    scale_factors: Float[Array, "B 2"] | None = None,
) -> Detections:
    """Return the best boxes with classes of each picture.

    The steps are: softmax, decode each box for each class, clip, rescale, leave out low scores, NMS
    in each class, the top D. A box can be detected as several classes.

    Args:
      config: ``config.roi_detections`` is used.
      outputs: outputs of the second stage for ``boxes_xyxy``. Boxes and scores are float32.
      boxes_xyxy: the boxes that were classified, resized pixels.
      box_mask: True where a box exists.
      image_sizes: (height, width) of each resized picture before padding. Boxes are clipped to it.
      scale_factors: (width, height) resize factors. Boxes are divided by them, which gives pixels
        of the original picture. None: boxes stay in resized pixels.

    Returns:
      ``config.roi_detections.max_detections`` boxes for each picture, sorted by score.

    Raises:
      UserError: arrays do not fit each other, or ``config`` is only a part of a config.
    """
    check_part(config, Config)
    arguments = {
        "outputs.deltas": (outputs.deltas, "B N C 4"),
        "outputs.class_logits": (outputs.class_logits, "B N _"),
        "boxes_xyxy": (boxes_xyxy, "B N 4"),
        "box_mask": (box_mask, "B N"),
        "image_sizes": (image_sizes, "B 2"),
    }
    if scale_factors is not None:
        arguments["scale_factors"] = (scale_factors, "B 2")
    check_shapes("detect", arguments)
    settings = config.roi_detections
    batch, count, classes, _ = outputs.deltas.shape
    probabilities = jax.nn.softmax(outputs.class_logits.astype(jnp.float32), axis=-1)
    scores = probabilities[..., :classes]
    deltas = outputs.deltas.astype(jnp.float32) * jnp.array(DELTA_STDS, jnp.float32)
    boxes = decode_boxes(boxes_xyxy[:, :, None], deltas)
    boxes = clip_boxes(boxes.reshape(batch, -1, 4), image_sizes)
    if scale_factors is not None:
        boxes = boxes * jnp.tile(1.0 / jnp.asarray(scale_factors, jnp.float32), 2)[:, None]
    valid = box_mask[..., None] & (scores > settings.min_score)
    indices, found = nms_per_class(
        boxes.reshape(outputs.deltas.shape),
        scores,
        valid,
        settings.nms_iou,
        settings.max_detections,
    )
    best_boxes = jnp.take_along_axis(boxes, indices[..., None], axis=1)
    best_scores = jnp.take_along_axis(scores.reshape(batch, count * classes), indices, axis=1)
    return Detections(
        boxes=jnp.where(found[..., None], best_boxes, 0.0),
        scores=jnp.where(found, best_scores, 0.0),
        labels=jnp.where(found, indices % classes, 0).astype(jnp.int32),
        valid=found,
    )
