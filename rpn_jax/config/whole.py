"""The whole config: its sections, and the checks between them.

The string below each field is its help text on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from rpn_jax.config.checks import check, check_types
from rpn_jax.config.data import DataConfig
from rpn_jax.config.model import ModelConfig, PixelConfig, Precision
from rpn_jax.config.stages import DetectionConfig, ProposalConfig, RoILossConfig, RPNLossConfig
from rpn_jax.config.train import OptimConfig, TrainConfig


@dataclass(frozen=True)
class Config:
    """All settings that determine a run's results."""

    name: str = "rpn"
    """Name of the config."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The detector."""
    pixels: PixelConfig = field(default_factory=PixelConfig)
    """Normalisation of pixels."""
    rpn_loss: RPNLossConfig = field(default_factory=RPNLossConfig)
    """Matching and sampling of anchors for the RPN loss."""
    rpn_proposals: ProposalConfig = field(default_factory=ProposalConfig)
    """Selection of proposals."""
    roi_loss: RoILossConfig = field(default_factory=RoILossConfig)
    """Boxes that train the second stage."""
    roi_detections: DetectionConfig = field(default_factory=DetectionConfig)
    """Selection of detections."""
    data: DataConfig = field(default_factory=DataConfig)
    """The dataset and the loading of its pictures."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser and the schedule of its learning rate."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length, start, evaluation and checkpoints of a training run."""

    def __post_init__(self) -> None:
        check_types("", self)
        check(
            self.train.gradient_parts == 1 or self.model.backbone.norm != "batch",
            "train.gradient_parts",
            self.train.gradient_parts,
            "1 with model.backbone.norm 'batch': its statistics are those of the whole batch",
        )


def with_precision(config: Config, precision: Precision) -> Config:
    """Return a copy of ``config`` whose network computes in ``precision``."""
    return replace(config, model=replace(config.model, precision=precision))
