"""Exact greedy non-maximum suppression (NMS) with fixed shapes.

Greedy NMS visits boxes by descending score. It keeps a box unless the IoU with a kept box of the
same level is above the threshold. GPUs compute the same result from a matrix of overlaps in a few
parallel rounds. On CPUs a loop over the kept boxes is faster (`rpn_jax.ops.cpu.nms`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rpn_jax.ops.boxes import approximate_iou, split_coordinates
from rpn_jax.ops.checks import check_shapes
from rpn_jax.ops.cpu.nms import keep_one_by_one, keep_one_by_one_of_classes
from rpn_jax.ops.topk import masked_top_k

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, UInt8

BITS = 8
"""Bits in a word of the mask: the overlaps that one GPU thread computes. With more bits, XLA splits
the work over several kernels and stores results in memory between them."""
ROUNDS_PER_CHECK = 3
"""Rounds between two tests for convergence. A test makes the GPU wait for the host, and costs more
than a round."""


def nms(
    boxes_xyxy: Float[Array, "*batch N 4"],
    scores: Float[Array, "*batch N"],
    valid: Bool[Array, "*batch N"],
    iou_threshold: float,
) -> Bool[Array, "*batch N"]:
    """Return which boxes of each set greedy NMS keeps.

    Args:
      boxes_xyxy: pixels.
      scores: higher is better. Among equal scores, the lower index comes first.
      valid: True where a box exists.
      iou_threshold: a kept box suppresses the boxes whose IoU with it is above (not at) this value.

    Returns:
      bool[*batch, N], True where a box is kept.

    Raises:
      UserError: the arrays do not fit each other.
    """
    _check_sets("nms", boxes_xyxy, scores, valid)
    valid = jnp.asarray(valid, bool)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), axis=-1, stable=True)
    count = scores.shape[-1]
    kept, found = nms_per_level(
        jnp.take_along_axis(boxes_xyxy, order[..., None], axis=-2)[..., None, :, :],
        jnp.take_along_axis(scores, order, axis=-1)[..., None, :],
        jnp.take_along_axis(valid, order, axis=-1)[..., None, :],
        iou_threshold,
        count,
    )
    places = jnp.where(found, jnp.take_along_axis(order, kept, axis=-1), count)
    nothing = jnp.zeros(valid.shape, bool)
    return jnp.put_along_axis(nothing, places, True, axis=-1, inplace=False, mode="drop")


def nms_per_level(
    boxes_xyxy: Float[Array, "*batch L N 4"],
    scores: Float[Array, "*batch L N"],
    valid: Bool[Array, "*batch L N"],
    iou_threshold: float,
    count: int,
) -> tuple[Int[Array, "*batch {count}"], Bool[Array, "*batch {count}"]]:
    """Return the ``count`` best boxes among those that greedy NMS keeps in each level.

    Args:
      boxes_xyxy: pixels. The boxes of a level are sorted by descending score.
      scores: higher is better. Among equal scores, the lower level comes first, then the lower
        index.
      valid: True where a box exists.
      iou_threshold: a kept box suppresses the boxes of its level whose IoU with it is above (not
        at) this value.
      count: boxes to return. It may exceed L N.

    Returns:
      indices: int32 indices of the kept boxes into the L N boxes, best first; 0 where not found.
      found: True where there was a box to return.

    Raises:
      UserError: the arrays do not fit each other.
    """
    _check_sets("nms_per_level", boxes_xyxy, scores, valid)
    *batch, levels, length = scores.shape
    if not (scores.size and count):
        return jnp.zeros((*batch, count), jnp.int32), jnp.zeros((*batch, count), bool)
    indices, found = jax.lax.platform_dependent(
        boxes_xyxy.reshape(-1, levels, length, 4),
        scores.reshape(-1, levels, length),
        valid.reshape(-1, levels, length),
        cpu=partial(keep_one_by_one, iou_threshold=iou_threshold, count=count),
        default=partial(keep_by_fixed_point, iou_threshold=iou_threshold, count=count),
    )
    return indices.reshape(*batch, count), found.reshape(*batch, count)


def nms_per_class(
    boxes_xyxy: Float[Array, "*batch N C 4"],
    scores: Float[Array, "*batch N C"],
    valid: Bool[Array, "*batch N C"],
    iou_threshold: float,
    count: int,
) -> tuple[Int[Array, "*batch {count}"], Bool[Array, "*batch {count}"]]:
    """Return the ``count`` best boxes among those that greedy NMS keeps in each class.

    Args:
      boxes_xyxy: pixels. Each of N candidates has another box for each of C classes.
      scores: finite; higher is better. Among equal scores, the lower candidate comes first, then
        the lower class.
      valid: True where a box exists.
      iou_threshold: a kept box suppresses the boxes of its class whose IoU with it is above (not
        at) this value.
      count: boxes to return. It may exceed N C.

    Returns:
      indices: int32 ``candidate * C + class`` of the kept boxes, best first; 0 where not found.
      found: True where there was a box to return.

    Raises:
      UserError: the arrays do not fit each other.
    """
    _check_sets("nms_per_class", boxes_xyxy, scores, valid)
    *batch, candidates, classes = scores.shape
    if not (scores.size and count):
        return jnp.zeros((*batch, count), jnp.int32), jnp.zeros((*batch, count), bool)
    indices, found = jax.lax.platform_dependent(
        boxes_xyxy.reshape(-1, candidates, classes, 4),
        scores.reshape(-1, candidates, classes),
        valid.reshape(-1, candidates, classes),
        cpu=partial(keep_one_by_one_of_classes, iou_threshold=iou_threshold, count=count),
        default=partial(keep_by_fixed_point_of_classes, iou_threshold=iou_threshold, count=count),
    )
    return indices.reshape(*batch, count), found.reshape(*batch, count)


def _check_sets(
    function: str,
    boxes_xyxy: Float[Array, "*sets 4"],
    scores: Float[Array, "*sets"],
    valid: Bool[Array, "*sets"],
) -> None:
    sets = " ".join(f"axis{number}" for number in range(scores.ndim))
    arguments = {
        "scores": (scores, sets),
        "boxes_xyxy": (boxes_xyxy, f"{sets} 4"),
        "valid": (valid, sets),
    }
    check_shapes(function, arguments)


def keep_by_fixed_point_of_classes(
    boxes_xyxy: Float[Array, "S N C 4"],
    scores: Float[Array, "S N C"],
    valid: Bool[Array, "S N C"],
    iou_threshold: float,
    count: int,
) -> tuple[Int[Array, "S {count}"], Bool[Array, "S {count}"]]:
    """Return what `nms_per_class` returns: NMS of all classes at once, then the best boxes."""
    sets, candidates, classes = scores.shape
    by_class = jnp.moveaxis(jnp.where(valid, scores, -jnp.inf), 2, 1)
    order = jnp.argsort(-by_class, axis=-1, stable=True)
    sorted_boxes = jnp.take_along_axis(jnp.moveaxis(boxes_xyxy, 2, 1), order[..., None], axis=2)
    sorted_valid = jnp.take_along_axis(jnp.moveaxis(valid, 2, 1), order, axis=2)
    keep = _fixed_point(
        sorted_boxes.reshape(-1, candidates, 4), sorted_valid.reshape(-1, candidates), iou_threshold
    ).reshape(sets, classes, candidates)
    keep = jnp.put_along_axis(jnp.zeros_like(keep), order, keep, axis=2, inplace=False)
    flat = (sets, -1)
    kept = jnp.moveaxis(keep, 1, 2).reshape(flat)
    _, indices, found = masked_top_k(scores.reshape(flat), kept, count)
    return indices, found


def keep_by_fixed_point(
    boxes_xyxy: Float[Array, "S L N 4"],
    scores: Float[Array, "S L N"],
    valid: Bool[Array, "S L N"],
    iou_threshold: float,
    count: int,
) -> tuple[Int[Array, "S {count}"], Bool[Array, "S {count}"]]:
    """Return what `nms_per_level` returns: NMS of all levels at once, then the best kept boxes."""
    length = valid.shape[-1]
    keep = _fixed_point(boxes_xyxy.reshape(-1, length, 4), valid.reshape(-1, length), iou_threshold)
    flat = (len(scores), -1)
    _, indices, found = masked_top_k(scores.reshape(flat), keep.reshape(flat), count)
    return indices, found


def _fixed_point(
    boxes_xyxy: Float[Array, "S N 4"], valid: Bool[Array, "S N"], iou_threshold: float
) -> Bool[Array, "S N"]:
    """Return which boxes of S sets, each sorted by descending score, greedy NMS keeps.

    The memory is a mask of [S, N, N] bits. A round keeps a box unless a better box that is kept so
    far overlaps it. After r rounds the result is right for the first r boxes, so the fixed point is
    the greedy result. Real boxes need 3 to 8 rounds.
    """
    count = valid.shape[-1]
    padding = -count % BITS  # to whole words
    boxes_xyxy = jnp.pad(boxes_xyxy, ((0, 0), (0, padding), (0, 0)))
    valid = jnp.pad(valid, ((0, 0), (0, padding)))
    suppressors = _suppressors(boxes_xyxy, iou_threshold)

    def one_round(keep: Bool[Array, "S M"]) -> Bool[Array, "S M"]:
        kept_suppressors = suppressors & _pack(keep)[..., None]
        return valid & ~jnp.any(kept_suppressors != 0, axis=1)

    def changed(state: tuple[Array, Array]) -> Bool[Array, ""]:
        return jnp.any(state[0] != state[1])

    def some_rounds(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep = state[1]
        for _ in range(ROUNDS_PER_CHECK):
            before, keep = keep, one_round(keep)
        return before, keep

    return jax.lax.while_loop(changed, some_rounds, some_rounds((valid, valid)))[1][:, :count]


def _suppressors(
    boxes_xyxy: Float[Array, "S M 4"], iou_threshold: float
) -> UInt8[Array, "S words M"]:
    """Return for each box one bit for every other box: set if that box is better and overlaps."""
    coordinates = split_coordinates(boxes_xyxy)
    boxes = tuple(x[:, None, :] for x in coordinates)
    positions = jnp.arange(boxes_xyxy.shape[1], dtype=jnp.int32)
    words = jnp.uint8(0)
    for bit in range(BITS):
        others = tuple(x[:, bit::BITS, None] for x in coordinates)
        better = positions[bit::BITS, None] < positions
        overlaps = approximate_iou(others, boxes) > iou_threshold
        words |= jnp.where(overlaps & better, jnp.uint8(1 << bit), jnp.uint8(0))
    return words


def _pack(bits: Bool[Array, "S M"]) -> UInt8[Array, "S words"]:
    """Pack each 8 entries into the bits of one word."""
    places = jnp.uint8(1) << jnp.arange(BITS, dtype=jnp.uint8)
    words = bits.reshape(len(bits), -1, BITS)
    return jnp.sum(jnp.where(words, places, 0), axis=-1, dtype=jnp.uint8)
