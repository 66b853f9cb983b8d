"""Proposals from the outputs of the RPN head (Ren et al. 2015; Lin et al. 2016 for the levels)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rpn_jax.config import Config, check_part
from rpn_jax.models.rpn.checks import check_outputs
from rpn_jax.ops import (
    clip_boxes,
    decode_boxes,
    grid_anchors,
    level_validity,
    masked_top_k,
    nms_per_level,
)
from rpn_jax.structures import Proposals, RPNOutputs

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


def propose(
    config: Config,
    outputs: RPNOutputs,
    image_sizes: Int[Array, "B 2"],
    scale_factors: Float[Array, "B 2"] | None = None,
) -> Proposals:
    """Return the best boxes of each picture.

    The steps are: the top k of each level, decode, clip, rescale, NMS in each level, the top N.

    Args:
      config: ``config.model.rpn.anchors`` and ``config.rpn_proposals`` are used.
      outputs: outputs of the network, of any float dtype. Boxes and scores are float32.
      image_sizes: (height, width) of each resized picture before padding. Boxes are clipped to it.
      scale_factors: (width, height) resize factors. Boxes are divided by them, which gives pixels
        of the original picture. None: boxes stay in resized pixels.

    Returns:
      ``config.rpn_proposals.max_proposals`` boxes for each picture, sorted by score. An anchor
      whose logit or deltas are NaN gives no box.

    Raises:
      UserError: the number of levels differs from that of the config's strides, arrays do not fit
        each other, or ``config`` is only a part of a config.
    """
    check_part(config, Config)
    others = {"image_sizes": (image_sizes, "B 2")}
    if scale_factors is not None:
        others["scale_factors"] = (scale_factors, "B 2")
    check_outputs("propose", config, outputs, others)
    boxes, logits, valid = candidates(config, outputs, image_sizes)
    if scale_factors is not None:
        factors = jnp.tile(jnp.asarray(scale_factors, jnp.float32), 2)
        boxes = boxes / factors[:, None, None, :]
    settings = config.rpn_proposals
    sizes = boxes[..., 2:] - boxes[..., :2]
    valid = valid & jnp.all(sizes > settings.min_size, axis=-1)
    indices, kept = nms_per_level(boxes, logits, valid, settings.nms_iou, settings.max_proposals)
    flat_boxes = boxes.reshape(len(boxes), -1, 4)
    kept_boxes = jnp.take_along_axis(flat_boxes, indices[..., None], axis=1)
    kept_logits = jnp.take_along_axis(logits.reshape(len(logits), -1), indices, axis=1)
    return Proposals(
        jnp.where(kept[..., None], kept_boxes, 0.0),
        jnp.where(kept, jax.nn.sigmoid(kept_logits), 0.0),
        kept,
    )


def candidates(
    config: Config, outputs: RPNOutputs, image_sizes: Int[Array, "B 2"]
) -> tuple[Float[Array, "B L k 4"], Float[Array, "B L k"], Bool[Array, "B L k"]]:
    """Return the anchors with the best scores in each level, decoded and clipped to the picture.

    Returns:
      boxes: xyxy, resized pixels. k is ``nms_pre``, or the number of anchors in the largest level
        if that is smaller.
      logits: descending within a level.
      valid: True where a box exists.
    """
    anchors = grid_anchors(outputs.level_shapes, config.model.rpn.anchors)
    exists = level_validity(outputs.level_shapes, config.model.rpn.anchors, image_sizes)
    k = min(config.rpn_proposals.nms_pre, max(len(level) for level in anchors))
    levels = [
        _level_candidates(*level, k)
        for level in zip(outputs.objectness, outputs.deltas, anchors, exists, strict=True)
    ]
    boxes, logits, valid = (jnp.stack(parts, axis=1) for parts in zip(*levels, strict=True))
    flat = boxes.reshape(len(boxes), -1, 4)
    return clip_boxes(flat, image_sizes).reshape(boxes.shape), logits, valid


def _level_candidates(
    logits: Float[Array, "B Hl Wl A"],
    deltas: Float[Array, "B Hl Wl A 4"],
    anchors: Float[Array, "K 4"],
    valid: Bool[Array, "B K"],
    k: int,
) -> tuple[Float[Array, "B k 4"], Float[Array, "B k"], Bool[Array, "B k"]]:
    batch = len(logits)
    # Logits are sorted, not scores: many sigmoids round to 1, and the reference's order of those is
    # arbitrary.
    flat_logits = logits.reshape(batch, -1).astype(jnp.float32)
    valid = valid & ~jnp.isnan(flat_logits)
    best_logits, indices, exists = masked_top_k(flat_logits, valid, k)
    flat_deltas = deltas.reshape(batch, -1, 4)
    best_deltas = jnp.take_along_axis(flat_deltas, indices[..., None], axis=1)
    return decode_boxes(anchors[indices], best_deltas), best_logits, exists
