"""Sections of a config that choose the boxes of each stage: for its loss, and as its results.

The string below each field is its help text on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass

from rpn_jax.config.checks import check, check_types

MOST_BOXES = 100_000
"""Largest number of boxes in a picture. Results are padded to the number that a config allows, and
XLA aborts if the padded results do not fit into the memory."""


@dataclass(frozen=True)
class RPNLossConfig:
    """Matching and sampling of anchors for the RPN loss (Ren et al. 2015, section 3.1.2)."""

    positive_iou: float = 0.7
    """An anchor is positive if its IoU with a box is at least this."""
    negative_iou: float = 0.3
    """An anchor is negative if its IoU with every box is below this. Between the two thresholds it
    is ignored."""
    min_positive_iou: float = 0.3
    """The anchors with a box's highest IoU are positive too, if that IoU is at least this."""
    samples_per_image: int = 256
    """Number of anchors sampled from each picture. 0 uses all positive and negative anchors."""
    positive_fraction: float = 0.5
    """Largest fraction of the samples that may be positive."""
    inside_only: bool = False
    """Use only the anchors that lie inside their picture."""

    def __post_init__(self) -> None:
        check_types("rpn_loss", self)
        for key in ("positive_iou", "negative_iou", "min_positive_iou", "positive_fraction"):
            value = getattr(self, key)
            check(0 < value <= 1, f"rpn_loss.{key}", value, "above 0, at most 1")
        check(
            self.negative_iou <= self.positive_iou,
            "rpn_loss.negative_iou",
            self.negative_iou,
            f"at most rpn_loss.positive_iou, {self.positive_iou}",
        )
        check(
            self.samples_per_image >= 0,
            "rpn_loss.samples_per_image",
            self.samples_per_image,
            "0 or more",
        )


@dataclass(frozen=True)
class ProposalConfig:
    """Selection of proposals from the outputs of the RPN head."""

    nms_pre: int = 2000
    """Number of anchors of each level that are decoded, those with the highest scores."""
    nms_iou: float = 0.7
    """NMS removes a box whose IoU with a better box of its level is above this."""
    max_proposals: int = 1000
    """Largest number of proposals in a picture, over all levels."""
    min_size: float = 0.0
    """Smallest width and height, in original pixels. Only larger boxes are kept."""

    def __post_init__(self) -> None:
        check_types("rpn_proposals", self)
        check(self.nms_pre >= 1, "rpn_proposals.nms_pre", self.nms_pre, "1 or more")
        check(0 <= self.nms_iou <= 1, "rpn_proposals.nms_iou", self.nms_iou, "0 to 1")
        _check_most("rpn_proposals.max_proposals", self.max_proposals)
        check(self.min_size >= 0, "rpn_proposals.min_size", self.min_size, "0 or more")


@dataclass(frozen=True)
class RoILossConfig:
    """Boxes that train the second stage: proposals of the RPN, matched to objects and sampled."""

    nms_pre: int = 2000
    """Number of anchors of each level that are decoded, as rpn_proposals.nms_pre, in training."""
    max_proposals: int = 1000
    """Largest number of proposals in a picture, as rpn_proposals.max_proposals, in training."""
    positive_iou: float = 0.5
    """A proposal is positive if its IoU with an object is at least this. Others are background."""
    samples_per_image: int = 512
    """Number of boxes sampled from the proposals and objects of each picture. 0 uses all."""
    positive_fraction: float = 0.25
    """Largest fraction of the samples that may be positive."""

    def __post_init__(self) -> None:
        check_types("roi_loss", self)
        check(self.nms_pre >= 1, "roi_loss.nms_pre", self.nms_pre, "1 or more")
        _check_most("roi_loss.max_proposals", self.max_proposals)
        for key in ("positive_iou", "positive_fraction"):
            value = getattr(self, key)
            check(0 < value <= 1, f"roi_loss.{key}", value, "above 0, at most 1")
        check(
            self.samples_per_image >= 0,
            "roi_loss.samples_per_image",
            self.samples_per_image,
            "0 or more",
        )


@dataclass(frozen=True)
class DetectionConfig:
    """Selection of detections from the outputs of the second stage."""

    min_score: float = 0.05
    """Only boxes with a higher score are kept."""
    nms_iou: float = 0.5
    """NMS removes a box whose IoU with a better box of its class is above this."""
    max_detections: int = 100
    """Largest number of detections in a picture, over all classes."""

    def __post_init__(self) -> None:
        check_types("roi_detections", self)
        check(0 <= self.min_score < 1, "roi_detections.min_score", self.min_score, "0 to below 1")
        check(0 <= self.nms_iou <= 1, "roi_detections.nms_iou", self.nms_iou, "0 to 1")
        _check_most("roi_detections.max_detections", self.max_detections)


def _check_most(key: str, value: int) -> None:
    check(1 <= value <= MOST_BOXES, key, value, f"1 to {MOST_BOXES}")
