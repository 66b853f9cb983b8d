"""Data structures that the packages exchange, and the shape glossary.

Glossary (used in every docstring):

====  ==========================================================================================
B     pictures in a batch
H, W  height and width of the padded canvas, pixels
h, w  height and width of the canvas that holds the pictures as decoded, pixels
G     ground-truth boxes in a picture, padded
L     levels of the pyramid (5 with FPN, 1 for C4)
Hl    rows of level l, ``ceil(H / stride_l)``; Wl is its number of columns
A     anchors in a cell (ratios x scales)
K     anchors of a picture over all levels, ``sum(Hl * Wl * A)``, in the order level, row, column,
      anchor
S     cells of a picture at which training computes the head
N     proposals in a picture, padded (``config.rpn_proposals.max_proposals``)
C     classes, without the background (``config.model.roi.num_classes``); in feature maps, channels
P     bins along each side of a box (``config.model.roi.pooled_size``)
R     boxes of a batch in one list
D     detections in a picture, padded (``config.roi_detections.max_detections``)
====  ==========================================================================================

Boxes are ``(x1, y1, x2, y2)`` in pixels, ``xyxy`` in names. Sizes are ``(height, width)``.
Resize factors are ``(width, height)``, as the reference stores them: resized = factor * original.
Padded entries are marked by a mask and hold zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, UInt8

Variables = dict[str, Any]
"""``{"params": ..., "batch_stats": ...}``: arrays, nested like PyTorch's module names."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PendingResize:
    """The resize that the pictures of a `Batch` still need, done by `rpn_jax.data.on_device`."""

    sizes: Int[Array, "B 2"]
    """int32 (height, width) of each picture as decoded."""
    flipped: Bool[Array, " B"]
    """True where the picture must be flipped left to right. Its boxes are flipped already."""
    canvas: tuple[int, int] = field(metadata={"static": True})
    """(H, W) after the resize, pixels."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Batch:
    """Pictures on one canvas with their ground truth, as the input pipeline makes them."""

    images: UInt8[Array, "B H W 3"]
    """RGB, resized, not normalised. Pixels outside a picture's own size are zero.

    While a resize is pending, these are the pictures as decoded: uint8[B, h, w, 3].
    """
    image_sizes: Int[Array, "B 2"]
    """int32 (height, width) of each resized picture, before padding."""
    scale_factors: Float[Array, "B 2"]
    """float32 (width, height) resize factors."""
    boxes_xyxy: Float[Array, "B G 4"]
    """float32 ground truth in resized pixels, without crowd boxes; zeros where masked."""
    labels: Int[Array, "B G"]
    """int32 class index of each box, from 0; zeros where masked."""
    box_mask: Bool[Array, "B G"]
    """True where a box exists."""
    indices: Int[Array, " B"]
    """int32 position of each picture in its dataset; -1 for an empty slot."""
    pending_resize: PendingResize | None = None
    """None if the pictures are resized."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class RPNOutputs:
    """Outputs of the network: one array for each level, finest level first."""

    objectness: tuple[Float[Array, "B Hl Wl A"], ...]
    """float32 logits."""
    deltas: tuple[Float[Array, "B Hl Wl A 4"], ...]
    """float32 (dx, dy, dw, dh) relative to each anchor."""

    @property
    def level_shapes(self) -> list[tuple[int, int]]:
        """(Hl, Wl) of each level."""
        return [(level.shape[1], level.shape[2]) for level in self.objectness]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Proposals:
    """Class-agnostic boxes, best first: the input of a second stage."""

    boxes: Float[Array, "B N 4"]
    """float32 xyxy pixels; zeros where not valid."""
    scores: Float[Array, "B N"]
    """float32 in [0, 1], descending; zeros where not valid."""
    valid: Bool[Array, "B N"]
    """True where a proposal exists. Valid proposals come first."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class RoIOutputs:
    """Outputs of the second stage for given boxes (regions of interest, RoIs)."""

    class_logits: Float[Array, "B N C+1"]
    """float32 logits. The last class is the background."""
    deltas: Float[Array, "B N C 4"]
    """float32 (dx, dy, dw, dh) relative to each box, divided by `rpn_jax.models.roi.DELTA_STDS`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes with classes, best first: the result of a two-stage detector."""

    boxes: Float[Array, "B D 4"]
    """float32 xyxy pixels; zeros where not valid."""
    scores: Float[Array, "B D"]
    """float32 in [0, 1], descending; zeros where not valid."""
    labels: Int[Array, "B D"]
    """int32 class of each box, from 0; zeros where not valid."""
    valid: Bool[Array, "B D"]
    """True where a detection exists. Valid detections come first."""
