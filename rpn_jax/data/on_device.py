"""The last step of the input, on the devices: originals are resized."""

from __future__ import annotations

import jax

from rpn_jax.ops.resize import resize_bilinear
from rpn_jax.structures import Batch, SourceBatch

_resize = jax.jit(resize_bilinear, static_argnames="canvas")


def to_batch(placed: Batch | SourceBatch) -> Batch:
    """Resize the pictures of a `SourceBatch` on the devices they lie on; a `Batch` is done already.

    Does not wait for the devices. Pictures may have one leading axis or several, and stay sharded
    as they are. A small program is compiled for each pair of canvases, before and after.
    """
    if isinstance(placed, Batch):
        return placed
    return Batch(
        images=_resize(
            placed.originals,
            placed.original_sizes,
            placed.image_sizes,
            placed.mirrored,
            canvas=placed.canvas,
        ),
        image_sizes=placed.image_sizes,
        scale_factors=placed.scale_factors,
        boxes_xyxy=placed.boxes_xyxy,
        box_mask=placed.box_mask,
        indices=placed.indices,
    )
