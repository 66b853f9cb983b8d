"""The networks. Only this package imports ``flax.linen``."""

from rpn_jax.models.detectors import (
    RPN,
    Detector,
    FasterRCNN,
    build_detector,
    init_variables,
    variable_shapes,
)

__all__ = [
    "RPN",
    "Detector",
    "FasterRCNN",
    "build_detector",
    "init_variables",
    "variable_shapes",
]
