"""Weights for inference: what does not depend on the pictures is computed once, not every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from rpn_jax.models.layers import KERNEL_OHWI, NORM_EPSILON
from rpn_jax.ops.precision import compute_dtype

if TYPE_CHECKING:
    from rpn_jax.config import ModelConfig
    from rpn_jax.structures import Variables

NORM_OF = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3", "0": "1"}
"""The norm behind a convolution, by their names in the module of both."""
HEAD_OUTPUTS = ("rpn_cls", "rpn_reg")
"""Convolutions that stay as they are: their bias is added in float32."""

Weights = dict[str, np.ndarray]


def fold_norms(config: ModelConfig, variables: Variables, kernels_ohwi: bool) -> Variables:
    """Weights that ``RPN(config, folded=True)`` takes, NumPy arrays.

    Norms with stored statistics become part of the convolution before them, ``w' = w * gamma /
    sigma``, and weights get the dtype that the precision computes in: the same outputs.

    Args:
      config: of the network.
      variables: its variables.
      kernels_ohwi: store kernels in the order that GPUs' convolutions read, which would otherwise
        be made of HWIO in every call.
    """
    dtype = compute_dtype(config.precision)

    def convert(weights: Weights) -> Weights:
        kernel = weights["kernel"].astype(dtype)
        bias = {"bias": weights["bias"].astype(dtype)} if "bias" in weights else {}
        if kernels_ohwi:
            return {KERNEL_OHWI: np.ascontiguousarray(kernel.transpose(3, 0, 1, 2)), **bias}
        return {"kernel": kernel, **bias}

    host = jax.device_get(variables)
    return {"params": _fold(host["params"], host.get("batch_stats", {}), convert)}


def _fold(
    params: dict[str, Any], statistics: dict[str, Any], convert: Callable[[Weights], Weights]
) -> dict[str, Any]:
    if "kernel" in params:
        return convert(params)
    if "scale" in params:  # a group norm, which needs the picture
        return params
    folded = {}
    for name, child in params.items():
        norm = NORM_OF.get(name)
        if name in HEAD_OUTPUTS:
            folded[name] = child
        elif "kernel" in child and norm in statistics:
            folded[name] = convert(_with_norm(child["kernel"], params[norm], statistics[norm]))
        elif "mean" not in statistics.get(name, {}):
            folded[name] = _fold(child, statistics.get(name, {}), convert)
    return folded


def _with_norm(kernel: np.ndarray, norm: Weights, statistics: Weights) -> Weights:
    multiplier = norm["scale"] / np.sqrt(statistics["var"] + np.float32(NORM_EPSILON))
    return {"kernel": kernel * multiplier, "bias": norm["bias"] - statistics["mean"] * multiplier}
