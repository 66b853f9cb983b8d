"""Put anchors with equal scores into the reference's order, to compare detections.

`tools.parity.ties` explains why anchors with equal scores have no order. A case of two stages does
not hold the proposals of the reference. Its detections show some of them: a detection is the box of
one anchor, decoded for one class. The anchors of the detections come first here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from rpn_jax.config import Config
from rpn_jax.models.roi import DELTA_STDS
from rpn_jax.ops import clip_boxes, decode_boxes
from rpn_jax.structures import RoIOutputs, RPNOutputs
from tools.parity.compare import BOX_TOLERANCE, SCORE_TOLERANCE
from tools.parity.ties import every_proposal, lift_chosen, split_levels

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int
    from numpy import ndarray

Classifier = Callable[["Float[Array, '1 N 4']"], RoIOutputs]
"""Returns the second stage's outputs for boxes of the picture."""

CHUNK = 1000
"""Number of boxes for which the second stage is run at once."""


def settle_detection_ties(
    config: Config,
    outputs: RPNOutputs,
    image_size: Int[Array, "1 2"],
    reference: Float[ndarray, "m 6"],
    classify: Classifier,
) -> RPNOutputs:
    """Return head outputs with the same scores and the reference's order of equal scores.

    Args:
      config: config of the network.
      outputs: head outputs of the first stage for one picture.
      image_size: its (height, width) in pixels.
      reference: xyxy, score and class of its detections.
      classify: runs the second stage on the picture.
    """
    (rows,) = np.asarray(every_proposal(config, outputs, image_size, None))
    scores = rows[:, 4]
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True, equal_nan=False)
    tied = np.flatnonzero((sizes[group] > 1) & ~np.isnan(scores))
    chosen = np.zeros(len(rows), bool)
    for indices, boxes, probabilities in _decoded(rows[:, :4], tied, image_size, classify):
        chosen[indices] = _is_detected(boxes, probabilities, reference)
    logits = np.concatenate([np.asarray(level).reshape(-1) for level in outputs.objectness])
    return RPNOutputs(
        split_levels(lift_chosen(logits, scores, chosen)[None], outputs), outputs.deltas
    )


def _decoded(
    boxes: Float[ndarray, "K 4"],
    indices: Int[ndarray, " T"],
    image_size: Int[Array, "1 2"],
    classify: Classifier,
) -> Iterator[tuple[Int[ndarray, " n"], Float[ndarray, "n C 4"], Float[ndarray, "n C"]]]:
    """Yield chunks of indices with their boxes and scores for each class."""
    for start in range(0, len(indices), CHUNK):
        chunk = indices[start : start + CHUNK]
        padded = np.zeros((1, CHUNK, 4), np.float32)
        padded[0, : len(chunk)] = boxes[chunk]
        outputs = classify(jnp.asarray(padded))
        deltas = outputs.deltas * jnp.array(DELTA_STDS)
        decoded = decode_boxes(jnp.asarray(padded)[:, :, None], deltas)
        clipped = clip_boxes(decoded.reshape(1, -1, 4), image_size).reshape(decoded.shape)
        probabilities = jax.nn.softmax(outputs.class_logits, axis=-1)[..., :-1]
        yield (
            chunk,
            np.asarray(clipped)[0, : len(chunk)],
            np.asarray(probabilities)[0, : len(chunk)],
        )


def _is_detected(
    boxes: Float[ndarray, "n C 4"],
    scores: Float[ndarray, "n C"],
    reference: Float[ndarray, "m 6"],
) -> Bool[ndarray, " n"]:
    """Return which boxes are a detection of the reference, for any class."""
    detected = np.zeros(len(boxes), bool)
    for *box, score, label in reference:
        same_box = np.abs(boxes[:, int(label)] - box).max(axis=1) <= BOX_TOLERANCE
        detected |= same_box & (np.abs(scores[:, int(label)] - score) <= SCORE_TOLERANCE)
    return detected
