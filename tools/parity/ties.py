"""Put proposals with equal scores into the reference's order, to compare them.

If logits are large, many sigmoids round to the same float32, mostly to 1. PyTorch's unstable sort
leaves equal scores in an arbitrary order, and NMS keeps the first box of a cluster. Two correct
implementations then return different boxes with the same scores.

To compare them, the logits are changed without changing any score: among anchors with equal scores,
those that the reference kept come first. Greedy NMS then keeps exactly these boxes if everything
else is equal.
"""

from __future__ import annotations

from functools import partial
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
    """Return head outputs with the same scores and the reference's order of equal scores.

    Args:
      config: config of the network.
      outputs: head outputs of the network.
      image_sizes: (height, width) of each resized picture, pixels.
      scale_factors: (width, height) by which the reference's boxes were divided, or None.
      reference: xyxy and score of each picture's proposals.
    """
    rows = np.asarray(every_proposal(config, outputs, image_sizes, scale_factors))
    logits = np.concatenate(
        [np.asarray(level).reshape(len(level), -1) for level in outputs.objectness], axis=1
    )
    settled = []
    for picture, kept, own in zip(rows, reference, logits, strict=True):
        chosen = np.zeros(len(picture), bool)
        partners = match_proposals(picture, kept)
        chosen[partners[partners >= 0]] = True
        settled.append(lift_chosen(own, picture[:, 4], chosen))
    return RPNOutputs(split_levels(np.stack(settled), outputs), outputs.deltas)


@partial(jax.jit, static_argnums=0)
def every_proposal(
    config: Config,
    outputs: RPNOutputs,
    image_sizes: Int[Array, "B 2"],
    scale_factors: Float[Array, "B 2"] | None,
) -> Float[Array, "B K 5"]:
    """Return the proposal of each anchor, xyxy and score, NaN if the anchor does not exist."""
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
    return jnp.where(exists[..., None], rows, jnp.nan)


def lift_chosen(
    logits: Float[ndarray, " K"], scores: Float[ndarray, " K"], chosen: Bool[ndarray, " K"]
) -> Float[ndarray, " K"]:
    """Raise chosen logits to the highest with the same score, and lower all others to the lowest.

    Logits with a NaN score are returned unchanged.
    """
    _, group = np.unique(scores, return_inverse=True, equal_nan=False)
    highest = np.full(group.max() + 1, -np.inf, logits.dtype)
    lowest = np.full(group.max() + 1, np.inf, logits.dtype)
    np.maximum.at(highest, group, logits)
    np.minimum.at(lowest, group, logits)
    return np.where(chosen, highest[group], lowest[group])


def split_levels(
    logits: Float[ndarray, "B K"], like: RPNOutputs
) -> tuple[Float[Array, "B Hl Wl A"], ...]:
    """Return the logits of all anchors in the levels of ``like``."""
    ends = np.cumsum([level[0].size for level in like.objectness])[:-1]
    parts = np.split(logits, ends, axis=1)
    return tuple(
        jnp.asarray(part.reshape(level.shape))
        for part, level in zip(parts, like.objectness, strict=True)
    )
