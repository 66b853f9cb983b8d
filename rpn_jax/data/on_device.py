"""The part of the input pipeline that runs on the devices: the pending resize of a batch."""

from __future__ import annotations

from dataclasses import replace

import jax

from rpn_jax.ops.resize import resize_bilinear
from rpn_jax.structures import Batch

_resize = jax.jit(resize_bilinear, static_argnames="canvas")


def finish_resize(batch: Batch) -> Batch:
    """Resize the pictures of a batch on their devices, if a resize is pending.

    Does not wait for the devices. The arrays may have extra leading axes, and keep their sharding.
    A small program is compiled for each pair of canvases, before and after the resize.
    """
    pending = batch.pending_resize
    if pending is None:
        return batch
    images = _resize(
        batch.images, pending.sizes, batch.image_sizes, pending.flipped, canvas=pending.canvas
    )
    return replace(batch, images=images, pending_resize=None)
