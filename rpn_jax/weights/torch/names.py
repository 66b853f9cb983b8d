"""Convert between the names and layouts of this package's variables and those of PyTorch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from flax.traverse_util import flatten_dict, unflatten_dict
from numpy import ndarray

from rpn_jax.models.roi.head import FULLY_CONNECTED
from rpn_jax.structures import Variables

if TYPE_CHECKING:
    from jaxtyping import Float

VariablePath = tuple[str, ...]
"""Keys into `Variables`: the collection, the modules, and the name of the leaf."""
Shape = tuple[int, ...]
Shapes = dict[str, Shape]
"""Shapes in PyTorch's layout, by MMDetection's key."""

TORCH_LEAF_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
"""The name of a leaf in this package and in PyTorch."""

STATISTICS = {"running_mean": 0.0, "running_var": 1.0}
"""PyTorch's names of a norm's statistics, and their values if it only scales and shifts."""


def flat_by_torch_key(variables: Variables) -> dict[str, tuple[VariablePath, Any]]:
    """Return (path, leaf) of every leaf of ``variables``, by its PyTorch key."""
    return {torch_key(path): (path, leaf) for path, leaf in flatten_dict(variables).items()}


def torch_key(path: VariablePath) -> str:
    """Return the PyTorch key of a leaf.

    Example::

      >>> torch_key(("params", "backbone", "conv1", "kernel"))
      'backbone.conv1.weight'
    """
    return ".".join((*path[1:-1], TORCH_LEAF_NAMES[path[-1]]))


def torch_shape(key: str, shape: Shape) -> Shape:
    """Return the shape that the array of a PyTorch key has in PyTorch's layout.

    That is OIHW for an HWIO kernel, and (O, C * P * P) for a fully connected layer that reads a map
    [P, P, C].
    """
    outputs, inputs = shape[-1:], shape[-2:-1]
    if len(shape) == 4 and FULLY_CONNECTED in key:
        return (*outputs, math.prod(shape[:-1]))
    return (*outputs, *inputs, *shape[:-2])


def to_torch_layout(key: str, array: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    """Return the array of a PyTorch key in PyTorch's layout. Vectors are returned unchanged."""
    return _outputs_first(array).reshape(torch_shape(key, array.shape))


def from_torch_layout(array: Float[ndarray, "..."], shape: Shape) -> Float[ndarray, "..."]:
    """Return an array in PyTorch's layout as an array of this package with the given shape."""
    outputs_first = array.reshape(*shape[-1:], *shape[-2:-1], *shape[:-2])
    if len(shape) < 2:
        return outputs_first
    return outputs_first.transpose(*range(2, len(shape)), 1, 0)


def _outputs_first(array: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    """Return [..., inputs, outputs] as [outputs, inputs, ...]."""
    axes = range(array.ndim)
    return array.transpose(*axes[-1:], *axes[-2:-1], *axes[:-2])


def nest(leaves: dict[VariablePath, Any]) -> Variables:
    """Return leaves, given by their paths, as nested `Variables`."""
    return dict(unflatten_dict(leaves))
