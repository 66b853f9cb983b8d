"""Proposals with equal scores, which have no order of their own.

Where logits are large, many sigmoids round to the same float32, 1 above all. The reference then
sorts them as PyTorch's unstable sort happens to leave them, and NMS keeps the first of a cluster:
the same network gives other boxes, equally good by its own scores. To compare proposals all the
same, the outputs are changed within what their scores allow: of anchors with equal scores, those
that the reference kept come first. Greedy NMS then keeps exactly these, if all else is equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from rpn_jax.config import Config
from rpn_jax.ops import anchor_validity, clip_boxes, decode_boxes, grid_anchors
from rpn_jax.structures import RPNOutputs
from tools.parity.compare import match_proposals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, Bool, Float, Int
    from numpy import ndarray


def settle_ties(
    config: Config,
    outputs: RPNOutputs,
    image_sizes: Int[Array, "B 2"],
    scale_factors: Float[Array, "B 2"] | None,
    reference: Sequence[Float[ndarray, "m 5"]],
) -> RPNOutputs:
    """Head outputs with the same scores, in which the reference's choice among equals comes first.

    Args:
      config: of the outputs.
      outputs: of the network.
      image_sizes: (height, width) of each resized picture, pixels.
      scale_factors: (width, height) that the reference's boxes were divided by; None for none.
      reference: xyxy and score of each picture's proposals.
    """
    rows = every_proposal(config, outputs, image_sizes, scale_factors)
    logits = np.concatenate(
        [np.asarray(level).reshape(len(level), -1) for level in outputs.objectness], axis=1
    )
    settled = []
    for picture, kept, own in zip(rows, reference, logits, strict=True):
        chosen = np.zeros(len(picture), bool)
        partners = match_proposals(picture, kept)
        chosen[partners[partners >= 0]] = True
        settled.append(lift_chosen(own, picture[:, 4], chosen))
    return RPNOutputs(_split_levels(np.stack(settled), outputs), outputs.deltas)


def every_proposal(
    config: Config,
    outputs: RPNOutputs,
    image_sizes: Int[Array, "B 2"],
    scale_factors: Float[Array, "B 2"] | None,
) -> Float[ndarray, "B K 5"]:
    """What each anchor would propose, xyxy and score; NaN where it does not exist."""
    anchors = jnp.concatenate(grid_anchors(outputs.level_shapes, config.model.rpn.anchors))
    exists = anchor_validity(outputs.level_shapes, config.model.rpn.anchors, image_sizes)
    pictures = len(image_sizes)
    logits, deltas = (
        jnp.concatenate([level.reshape(pictures, -1, *rest) for level in levels], axis=1)
        for levels, rest in ((outputs.objectness, ()), (outputs.deltas, (4,)))
    )
    boxes = clip_boxes(decode_boxes(anchors, deltas), image_sizes)
    if scale_factors is not None:
        boxes = boxes / jnp.tile(scale_factors, 2)[:, None, :]
    rows = jnp.concatenate([boxes, jax.nn.sigmoid(logits)[..., None]], axis=-1)
    return np.asarray(jnp.where(exists[..., None], rows, jnp.nan))


def lift_chosen(
    logits: Float[ndarray, " K"], scores: Float[ndarray, " K"], chosen: Bool[ndarray, " K"]
) -> Float[ndarray, " K"]:
    """Each logit as the highest of those with its score, if chosen, and else as the lowest.

    NaN scores are of no group; their logits stay.
    """
    _, group = np.unique(scores, return_inverse=True, equal_nan=False)
    highest = np.full(group.max() + 1, -np.inf, logits.dtype)
    lowest = np.full(group.max() + 1, np.inf, logits.dtype)
    np.maximum.at(highest, group, logits)
    np.minimum.at(lowest, group, logits)
    return np.where(chosen, highest[group], lowest[group])


def _split_levels(
    logits: Float[ndarray, "B K"], like: RPNOutputs
) -> tuple[Float[Array, "B Hl Wl A"], ...]:
    ends = np.cumsum([level[0].size for level in like.objectness])[:-1]
    parts = np.split(logits, ends, axis=1)
    return tuple(
        jnp.asarray(part.reshape(level.shape))
        for part, level in zip(parts, like.objectness, strict=True)
    )
