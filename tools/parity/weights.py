"""Fill weights by a rule. Two implementations then have the same weights without a file."""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.config import Config
from rpn_jax.models import variable_shapes
from rpn_jax.weights.torch.names import flat_by_torch_key, from_torch_layout, nest, torch_shape

if TYPE_CHECKING:
    from jaxtyping import Float32

    from rpn_jax.structures import Variables


def variables_by_rule(config: Config, seed: int) -> Variables:
    """Return all parameters and statistics of a config as float32, filled by `array_by_rule`."""
    shapes = flat_by_torch_key(variable_shapes(config))
    return nest(
        {
            path: from_torch_layout(
                array_by_rule(key, torch_shape(key, leaf.shape), seed), leaf.shape
            )
            for key, (path, leaf) in shapes.items()
        }
    )


def array_by_rule(key: str, shape: tuple[int, ...], seed: int) -> Float32[np.ndarray, "..."]:
    """Return the array for a key of a published file, in PyTorch's layout.

    Kernels and matrices are normal with variance gain / inputs. Scales and variances of norms are
    uniform in [0.5, 1.5], times 0.3 for the last norm of a bottleneck. All others are normal with
    std 0.1.
    """
    rng = np.random.RandomState(zlib.crc32(f"{seed}:{_drawn_key(key)}".encode()))
    if len(shape) in (2, 4):
        array = rng.standard_normal(shape) * math.sqrt(_gain(key, shape[1]) / math.prod(shape[1:]))
    elif key.endswith("running_var") or _is_norm_weight(key):
        array = rng.uniform(0.5, 1.5, shape) * (0.3 if key.endswith("bn3.weight") else 1.0)
    else:
        array = rng.standard_normal(shape) * 0.1
    return array.astype(np.float32)


def _drawn_key(key: str) -> str:
    """Return the key whose checksum seeds the array.

    The reference figures name the RPN's "bbox_head" "rpn_head". For the biases of the second stage
    they do the same, although published files name these "roi_head.bbox_head".
    """
    is_bias_of_second_stage = key.startswith("roi_head.bbox_head.") and key.endswith(".bias")
    return key.replace("bbox_head.", "rpn_head.") if is_bias_of_second_stage else key


def _gain(key: str, inputs: int) -> float:
    if "lateral_convs" in key:
        return 0.01
    if "fc_cls" in key or "fc_reg" in key:
        is_wide = inputs == 2048  # Inputs of head 'layer4'.
        return {"fc_cls": (0.4, 0.02), "fc_reg": (0.05, 0.003)}[key.split(".")[-2]][is_wide]
    return {"rpn_head.rpn_cls.weight": 1.0, "rpn_head.rpn_reg.weight": 0.02}.get(key, 2.0)


def _is_norm_weight(key: str) -> bool:
    return key.endswith(".weight") and ("bn" in key or "downsample.1" in key)
