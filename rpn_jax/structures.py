"""The arrays that travel between the parts, and the shape glossary.

Glossary (used in every docstring):

====  ==========================================================================================
B     pictures in a batch
H, W  height and width of the padded canvas, pixels
h, w  height and width of a canvas of originals, before resizing, pixels
G     ground-truth boxes a picture, padded
L     levels of the pyramid (5 with FPN, 1 for C4)
Hl    rows of level l, ``ceil(H / stride_l)``; Wl columns likewise
A     anchors a cell (ratios x scales)
K     anchors of a picture over all levels, ``sum(Hl * Wl * A)``, flat order level, row, column,
      anchor
S     cells of a picture at which the head is trained
N     proposals a picture, padded (``config.rpn_proposals.max_proposals``)
====  ==========================================================================================

Boxes are ``(x1, y1, x2, y2)`` in pixels, ``xyxy`` in names. Sizes are ``(height, width)``.
Resize factors are ``(width, height)``, as the reference stores them: resized = factor * original.
A padded entry is told by a mask and holds zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, UInt8

Variables = dict[str, Any]
"""``{"params": ..., "batch_stats": ...}``, arrays nested by PyTorch's module names."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Pictures on one canvas with their ground truth, as the input pipeline makes them."""

    images: UInt8[Array, "B H W 3"]
    """RGB, resized; zeros beyond each picture's own size. Normalised on the device."""
    image_sizes: Int[Array, "B 2"]
    """int32 (height, width) of each resized picture, before padding."""
    scale_factors: Float[Array, "B 2"]
    """float32 (width, height) resize factors."""
    boxes_xyxy: Float[Array, "B G 4"]
    """float32 ground truth in resized pixels, crowd boxes left out, zeros where masked."""
    box_mask: Bool[Array, "B G"]
    """True where a box exists."""
    indices: Int[Array, " B"]
    """int32 position of each picture in its dataset; -1 for one that only fills up the batch."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SourceBatch:
    """A `Batch` whose pictures are still to be resized; `rpn_jax.data.on_device` does it."""

    originals: UInt8[Array, "B h w 3"]
    """RGB as decoded; zeros beyond each picture's own size."""
    original_sizes: Int[Array, "B 2"]
    """int32 (height, width) of each original."""
    mirrored: Bool[Array, " B"]
    """True where the resized picture is to be mirrored left and right, as its boxes are already."""
    canvas: tuple[int, int] = field(metadata={"static": True})
    """(H, W) of the `Batch`, pixels."""
    image_sizes: Int[Array, "B 2"]
    """This and all below as in the `Batch`."""
    scale_factors: Float[Array, "B 2"]
    boxes_xyxy: Float[Array, "B G 4"]
    box_mask: Bool[Array, "B G"]
    indices: Int[Array, " B"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RPNOutputs:
    """What the network says, one array a level, finest level first."""

    objectness: tuple[Float[Array, "B Hl Wl A"], ...]
    """float32 logits."""
    deltas: tuple[Float[Array, "B Hl Wl A 4"], ...]
    """float32 (dx, dy, dw, dh) against each anchor."""

    @property
    def level_shapes(self) -> list[tuple[int, int]]:
        """(Hl, Wl) of each level."""
        return [(level.shape[1], level.shape[2]) for level in self.objectness]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Proposals:
    """Class-agnostic boxes, best first; a second stage consumes these."""

    boxes: Float[Array, "B N 4"]
    """float32 xyxy pixels; zeros where not valid."""
    scores: Float[Array, "B N"]
    """float32 in [0, 1], descending; zeros where not valid."""
    valid: Bool[Array, "B N"]
    """True where a proposal exists; the valid ones come first."""
