"""Region Proposal Networks and Faster R-CNN in JAX and Flax.

The names below are imported when first used, so ``import rpn_jax`` is quick and needs none of
the packages that only some of them use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from rpn_jax import ops
    from rpn_jax.config import Config, load_config
    from rpn_jax.errors import UserError
    from rpn_jax.inference.detector import Detector
    from rpn_jax.inference.proposer import Proposer
    from rpn_jax.models import RPN, FasterRCNN, init_variables
    from rpn_jax.models.roi.detections import detect
    from rpn_jax.models.roi.loss import roi_loss
    from rpn_jax.models.roi.targets import roi_targets
    from rpn_jax.models.rpn.loss import rpn_loss
    from rpn_jax.models.rpn.proposals import propose
    from rpn_jax.ops.pixels import normalize_images
    from rpn_jax.structures import Batch, Detections, Proposals, RoIOutputs, RPNOutputs
    from rpn_jax.weights.folders import load_variables, save_variables

__all__ = [
    "RPN",
    "Batch",
    "Config",
    "Detections",
    "Detector",
    "FasterRCNN",
    "Proposals",
    "Proposer",
    "RPNOutputs",
    "RoIOutputs",
    "UserError",
    "detect",
    "init_variables",
    "load_config",
    "load_variables",
    "normalize_images",
    "ops",
    "propose",
    "roi_loss",
    "roi_targets",
    "rpn_loss",
    "save_variables",
]

_HOMES = {
    "RPN": "rpn_jax.models",
    "Batch": "rpn_jax.structures",
    "Config": "rpn_jax.config",
    "Detections": "rpn_jax.structures",
    "Detector": "rpn_jax.inference.detector",
    "FasterRCNN": "rpn_jax.models",
    "Proposals": "rpn_jax.structures",
    "Proposer": "rpn_jax.inference.proposer",
    "RPNOutputs": "rpn_jax.structures",
    "RoIOutputs": "rpn_jax.structures",
    "UserError": "rpn_jax.errors",
    "detect": "rpn_jax.models.roi.detections",
    "init_variables": "rpn_jax.models",
    "load_config": "rpn_jax.config",
    "load_variables": "rpn_jax.weights.folders",
    "normalize_images": "rpn_jax.ops.pixels",
    "propose": "rpn_jax.models.rpn.proposals",
    "roi_loss": "rpn_jax.models.roi.loss",
    "roi_targets": "rpn_jax.models.roi.targets",
    "rpn_loss": "rpn_jax.models.rpn.loss",
    "save_variables": "rpn_jax.weights.folders",
}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("rpn_jax.ops")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rpn_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
