"""The CPU form of non-maximum suppression: a loop over the kept boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rpn_jax.ops.boxes import approximate_iou, split_coordinates

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

    LoopState = tuple[Array, Array, Array, Array]
    ClassLoopState = tuple[Array, Array, Array, Array, Array]


def keep_one_by_one(
    boxes_xyxy: Float[Array, "S L N 4"],
    scores: Float[Array, "S L N"],
    valid: Bool[Array, "S L N"],
    iou_threshold: float,
    count: int,
) -> tuple[Int[Array, "S {count}"], Bool[Array, "S {count}"]]:
    """Return what `rpn_jax.ops.nms.nms_per_level` returns.

    Each iteration keeps the best unvisited box of all levels and removes the boxes of its level
    that it suppresses. The loop ends after ``count`` boxes.
    """
    gone = valid.shape[-1]
    positions = jnp.arange(gone, dtype=jnp.int32)

    def one_set(
        args: tuple[Float[Array, "L N 4"], Float[Array, "L N"], Bool[Array, "L N"]],
    ) -> tuple[Int[Array, " count"], Bool[Array, " count"]]:
        boxes_xyxy, scores, valid = args
        coordinates = split_coordinates(boxes_xyxy)
        levels = jnp.arange(len(valid))
        # A valid box with score -inf must still be ranked before an exhausted level.
        finite = jnp.maximum(scores, jnp.finfo(scores.dtype).min)
        finite = jnp.pad(finite, ((0, 0), (0, 1)), constant_values=-jnp.inf)

        def box_remains(state: LoopState) -> Bool[Array, ""]:
            kept, best, _, _ = state
            return (kept < count) & jnp.any(best < gone)

        def keep_box(state: LoopState) -> LoopState:
            kept, best, remaining, indices = state
            level = jnp.argmax(finite[levels, best]).astype(jnp.int32)
            position = best[level]
            boxes = tuple(x[level] for x in coordinates)
            iou = approximate_iou(tuple(x[position] for x in boxes), boxes)
            leaves = (iou > iou_threshold) | (positions == position)
            left = jnp.where(leaves, gone, remaining[level])
            return (
                kept + 1,
                best.at[level].set(jnp.min(left)),
                remaining.at[level].set(left),
                indices.at[kept].set(level * gone + position),
            )

        # `remaining` holds the position of each unvisited box, so its minimum is a level's best.
        remaining = jnp.where(valid, positions, gone)
        best = jnp.min(remaining, axis=-1)
        # Zero, computed from an input: `shard_map` requires a loop's initial state to vary over
        # the same mesh axes as its later states.
        none = 0 * best[0]
        start = (none, best, remaining, jnp.full(count, none))
        kept, _, _, indices = jax.lax.while_loop(box_remains, keep_box, start)
        return indices, jnp.arange(count) < kept

    return jax.lax.map(one_set, (boxes_xyxy, scores, valid))


def keep_one_by_one_of_classes(
    boxes_xyxy: Float[Array, "S N C 4"],
    scores: Float[Array, "S N C"],
    valid: Bool[Array, "S N C"],
    iou_threshold: float,
    count: int,
) -> tuple[Int[Array, "S {count}"], Bool[Array, "S {count}"]]:
    """Return what `rpn_jax.ops.nms.nms_per_class` returns, without a sort.

    Each iteration keeps the best remaining box of all classes and removes the boxes of its class
    that it suppresses. The loop ends after ``count`` boxes.
    """
    _, candidates, classes = scores.shape
    positions = jnp.arange(candidates, dtype=jnp.int32)

    def one_set(
        args: tuple[Float[Array, "N C 4"], Float[Array, "N C"], Bool[Array, "N C"]],
    ) -> tuple[Int[Array, " count"], Bool[Array, " count"]]:
        boxes_xyxy, scores, valid = args
        coordinates = tuple(x.T for x in split_coordinates(boxes_xyxy))

        def box_remains(state: ClassLoopState) -> Bool[Array, ""]:
            kept, best, *_ = state
            return (kept < count) & (jnp.max(best) > -jnp.inf)

        def keep_box(state: ClassLoopState) -> ClassLoopState:
            kept, best, first, remaining, indices = state
            # Among the classes with the highest score, the lowest candidate comes first.
            label = jnp.argmin(jnp.where(best == jnp.max(best), first, candidates))
            position = first[label]
            boxes = tuple(x[label] for x in coordinates)
            iou = approximate_iou(tuple(x[position] for x in boxes), boxes)
            leaves = (iou > iou_threshold) | (positions == position)
            left = jnp.where(leaves, -jnp.inf, remaining[label])
            return (
                kept + 1,
                best.at[label].set(jnp.max(left)),
                first.at[label].set(jnp.argmax(left).astype(jnp.int32)),
                remaining.at[label].set(left),
                indices.at[kept].set(position * classes + label.astype(jnp.int32)),
            )

        remaining = jnp.where(valid, scores, -jnp.inf).T
        best = jnp.max(remaining, axis=-1)
        first = jnp.argmax(remaining, axis=-1).astype(jnp.int32)
        # Zero, computed from an input, as in `keep_one_by_one`.
        none = 0 * first[0]
        start = (none, best, first, remaining, jnp.full(count, none))
        kept, _, _, _, indices = jax.lax.while_loop(box_remains, keep_box, start)
        return indices, jnp.arange(count) < kept

    return jax.lax.map(one_set, (boxes_xyxy, scores, valid))
