"""Weights for inference: norms folded into convolutions, in the dtype of the activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rpn_jax.models.detectors import RPN
from rpn_jax.models.layers import KERNEL_OHWI, NORM_EPSILON
from rpn_jax.models.rpn.head import OUTPUT_CONVOLUTIONS
from rpn_jax.ops.precision import compute_dtype
from rpn_jax.structures import Variables

Weights = dict[str, np.ndarray]


def fold_norms(model: RPN, variables: Variables, kernels_ohwi: bool) -> Variables:
    """Return the weights for ``RPN(config, folded=True)``, as NumPy arrays.

    Norms with stored statistics are folded into the convolution before them,
    ``w' = w * gamma / sigma``, and weights get the dtype of the activations. The outputs are equal
    up to rounding.

    Args:
      model: the network of ``variables``, folded or not. Its backbone names the norms.
      variables: parameters and statistics.
      kernels_ohwi: store kernels in OHWI order, which convolutions on GPUs read. HWIO kernels would
        be transposed in every call.
    """
    dtype = compute_dtype(model.config.precision)

    def convert(weights: Weights) -> Weights:
        kernel = weights["kernel"].astype(dtype)
        bias = {"bias": weights["bias"].astype(dtype)} if "bias" in weights else {}
        if kernels_ohwi:
            return {KERNEL_OHWI: np.ascontiguousarray(kernel.transpose(3, 0, 1, 2)), **bias}
        return {"kernel": kernel, **bias}

    host = jax.device_get(variables)
    params, statistics = dict(host["params"]), host.get("batch_stats", {})
    backbone = params.pop("backbone")
    norm_of = model.backbone.norm_of
    folded = _fold(params, {}, {}, convert)
    if norm_of is not None:
        backbone = _fold(backbone, statistics.get("backbone", {}), norm_of, convert)
        return {"params": {"backbone": backbone, **folded}}
    return {**host, "params": {"backbone": backbone, **folded}}


def _fold(
    params: dict[str, Any],
    statistics: dict[str, Any],
    norm_of: Mapping[str, str],
    convert: Callable[[Weights], Weights],
) -> dict[str, Any]:
    if "kernel" in params:
        return convert(params)
    if "scale" in params:  # A group norm depends on the picture.
        return params
    folded = {}
    for name, child in params.items():
        norm = norm_of.get(name)
        if name in OUTPUT_CONVOLUTIONS:
            folded[name] = child
        elif "kernel" in child and norm in statistics:
            folded[name] = convert(_with_norm(child["kernel"], params[norm], statistics[norm]))
        elif "mean" not in statistics.get(name, {}):
            folded[name] = _fold(child, statistics.get(name, {}), norm_of, convert)
    return folded


def _with_norm(kernel: np.ndarray, norm: Weights, statistics: Weights) -> Weights:
    multiplier = norm["scale"] / np.sqrt(statistics["var"] + np.float32(NORM_EPSILON))
    return {"kernel": kernel * multiplier, "bias": norm["bias"] - statistics["mean"] * multiplier}
