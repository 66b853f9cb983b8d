"""Convert between the names and layouts of this package's variables and those of PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax.traverse_util import flatten_dict, unflatten_dict
from numpy import ndarray

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


def torch_shape(shape: Shape) -> Shape:
    """Return the shape that an array has in PyTorch's layout: OIHW for an HWIO kernel."""
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape


def to_torch_layout(array: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    """Transpose HWIO kernels to OIHW. Vectors are returned unchanged."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def from_torch_layout(array: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    """Transpose OIHW kernels to HWIO. Vectors are returned unchanged."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def nest(leaves: dict[VariablePath, Any]) -> Variables:
    """Return leaves, given by their paths, as nested `Variables`."""
    return dict(unflatten_dict(leaves))
