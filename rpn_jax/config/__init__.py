"""Configuration: all settings that determine a run's results.

``model``, ``stages``, ``data`` and ``train`` define the sections, and ``whole`` joins them.
``checks`` checks their values, ``fields`` lists and compares them, ``files`` loads and saves them.
"""

from dataclasses import replace

from rpn_jax.config.checks import check_part
from rpn_jax.config.data import CANVAS_MULTIPLE, DataConfig, Resize, Source
from rpn_jax.config.fields import config_changes, config_fields
from rpn_jax.config.files import CONFIG_FILE, config_file_of, config_names, load_config, save_config
from rpn_jax.config.model import (
    NORM_GROUPS,
    AnchorConfig,
    BackboneConfig,
    ModelConfig,
    PixelConfig,
    Precision,
    RoIHeadConfig,
    RPNHeadConfig,
)
from rpn_jax.config.stages import DetectionConfig, ProposalConfig, RoILossConfig, RPNLossConfig
from rpn_jax.config.train import OptimConfig, TrainConfig
from rpn_jax.config.whole import Config, with_precision

__all__ = [
    "CANVAS_MULTIPLE",
    "CONFIG_FILE",
    "NORM_GROUPS",
    "AnchorConfig",
    "BackboneConfig",
    "Config",
    "DataConfig",
    "DetectionConfig",
    "ModelConfig",
    "OptimConfig",
    "PixelConfig",
    "Precision",
    "ProposalConfig",
    "RPNHeadConfig",
    "RPNLossConfig",
    "Resize",
    "RoIHeadConfig",
    "RoILossConfig",
    "Source",
    "TrainConfig",
    "check_part",
    "config_changes",
    "config_fields",
    "config_file_of",
    "config_names",
    "load_config",
    "replace",
    "save_config",
    "with_precision",
]
