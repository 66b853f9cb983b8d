"""Weights for inference: norms folded into convolutions, in the dtype of the activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rpn_jax.models.detectors import Detector
from rpn_jax.models.layers import KERNEL_OHWI, NORM_EPSILON
from rpn_jax.models.resnet import NORM_OF
from rpn_jax.models.roi.head import FULLY_CONNECTED
from rpn_jax.models.roi.head import OUTPUT_LAYERS as ROI_OUTPUTS
from rpn_jax.models.rpn.head import OUTPUT_CONVOLUTIONS as RPN_OUTPUTS
from rpn_jax.ops.precision import compute_dtype
from rpn_jax.structures import Variables

Weights = dict[str, np.ndarray]

OUTPUT_LAYERS = (*RPN_OUTPUTS, *ROI_OUTPUTS)
"""Layers whose weights stay float32 and in order, because the heads concatenate them."""


def fold_norms(model: Detector, variables: Variables, kernels_ohwi: bool) -> Variables:
    """Return the weights for a detector with ``folded=True``, as NumPy arrays.

    Norms with stored statistics are folded into the convolution before them,
    ``w' = w * gamma / sigma``, and weights get the dtype of the activations. The outputs are equal
    up to rounding.

    Args:
      model: the network of ``variables``, folded or not. Its backbone names the norms.
      variables: parameters and statistics.
      kernels_ohwi: store kernels of convolutions in OHWI order, which GPUs read. HWIO kernels would
        be transposed in every call.
    """
    dtype = compute_dtype(model.config.precision)

    def cast(weights: Weights) -> Weights:
        return {name: array.astype(dtype) for name, array in weights.items()}

    def convert(weights: Weights) -> Weights:
        cast_weights = cast(weights)
        if kernels_ohwi:
            kernel = cast_weights.pop("kernel")
            cast_weights[KERNEL_OHWI] = np.ascontiguousarray(kernel.transpose(3, 0, 1, 2))
        return cast_weights

    host = jax.device_get(variables)
    statistics = host.get("batch_stats", {})
    keeps_backbone = model.backbone.norm_of is None
    folded = {
        name: child
        if name == "backbone" and keeps_backbone
        # Outside the backbone, only the stage of a ResNet in head 'layer4' has norms.
        else _fold(
            child,
            statistics.get(name, {}),
            model.backbone.norm_of if name == "backbone" else NORM_OF,
            convert,
            cast,
        )
        for name, child in host["params"].items()
    }
    return {**host, "params": folded} if keeps_backbone else {"params": folded}


def _fold(
    params: dict[str, Any],
    statistics: dict[str, Any],
    norm_of: Mapping[str, str],
    convert: Callable[[Weights], Weights],
    cast: Callable[[Weights], Weights],
) -> dict[str, Any]:
    if "kernel" in params:
        return convert(params)
    if "scale" in params:  # A group norm depends on the picture.
        return params
    folded = {}
    for name, child in params.items():
        norm = norm_of.get(name)
        if name in OUTPUT_LAYERS:
            folded[name] = child
        elif name == FULLY_CONNECTED:
            folded[name] = {index: cast(weights) for index, weights in child.items()}
        elif "kernel" in child and norm in statistics:
            folded[name] = convert(_with_norm(child["kernel"], params[norm], statistics[norm]))
        elif "mean" not in statistics.get(name, {}):
            folded[name] = _fold(child, statistics.get(name, {}), norm_of, convert, cast)
    return folded


def _with_norm(kernel: np.ndarray, norm: Weights, statistics: Weights) -> Weights:
    multiplier = norm["scale"] / np.sqrt(statistics["var"] + np.float32(NORM_EPSILON))
    return {"kernel": kernel * multiplier, "bias": norm["bias"] - statistics["mean"] * multiplier}
