"""Configuration: what decides what a run computes.

``sections`` holds the dataclasses, ``checks`` refuses their impossible values, ``files`` loads and
saves them.
"""

from dataclasses import replace

from rpn_jax.config.files import config_from_json, config_names, config_to_json, load_config
from rpn_jax.config.sections import (
    CANVAS_MULTIPLE,
    NORM_GROUPS,
    AnchorConfig,
    BackboneConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    PixelConfig,
    Precision,
    ProposalConfig,
    Resize,
    RPNHeadConfig,
    RPNLossConfig,
    TrainConfig,
    config_changes,
    with_precision,
)

__all__ = [
    "CANVAS_MULTIPLE",
    "NORM_GROUPS",
    "AnchorConfig",
    "BackboneConfig",
    "Config",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "PixelConfig",
    "Precision",
    "ProposalConfig",
    "RPNHeadConfig",
    "RPNLossConfig",
    "Resize",
    "TrainConfig",
    "config_changes",
    "config_from_json",
    "config_names",
    "config_to_json",
    "load_config",
    "replace",
    "with_precision",
]
