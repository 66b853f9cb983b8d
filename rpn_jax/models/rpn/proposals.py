"""From head outputs to class-agnostic boxes (Ren et al. 2015; Lin et al. 2016 for the levels)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rpn_jax.config import Config
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
    """The best boxes of each picture: top-k a level, decode, clip, rescale, NMS a level, top-N.

    Args:
      config: ``config.model.rpn.anchors`` and ``config.rpn_proposals`` are used.
      outputs: of the network, any float type; boxes and scores are float32.
      image_sizes: (height, width) of each resized picture before padding; boxes are clipped to it.
      scale_factors: (width, height) resize factors that boxes are divided by, to get pixels of the
        original picture; None leaves them in resized pixels.

    Returns:
      Proposals of ``config.rpn_proposals.max_proposals`` boxes a picture, sorted by score.

    Raises:
      UserError: the outputs have not one level for each of the config's strides.
    """
    boxes, logits, valid = candidates(config, outputs, image_sizes)
    if scale_factors is not None:
        boxes = boxes / jnp.tile(scale_factors, 2)[:, None, None, :]
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
    """The best-scored anchors of each level, decoded and clipped to the picture.

    Returns:
      Boxes xyxy in resized pixels, logits descending within a level, and which exist. k is
      ``nms_pre``, or the anchors of the largest level where they are fewer.
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
    anchors: Float[Array, "HlWlA 4"],
    valid: Bool[Array, "B HlWlA"],
    k: int,
) -> tuple[Float[Array, "B k 4"], Float[Array, "B k"], Bool[Array, "B k"]]:
    batch = len(logits)
    # Not the best scores: many sigmoids round to 1, and the reference orders those by accident.
    flat_logits = logits.reshape(batch, -1).astype(jnp.float32)
    best_logits, indices, exists = masked_top_k(flat_logits, valid, k)
    flat_deltas = deltas.reshape(batch, -1, 4)
    best_deltas = jnp.take_along_axis(flat_deltas, indices[..., None], axis=1)
    return decode_boxes(anchors[indices], best_deltas), best_logits, exists
