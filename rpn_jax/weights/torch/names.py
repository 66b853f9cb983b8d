"""Between this package's variables and PyTorch's names and layouts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax.traverse_util import flatten_dict, unflatten_dict

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from rpn_jax.structures import Variables

VariablePath = tuple[str, ...]
"""Keys into `Variables`: collection, modules, word."""
Shape = tuple[int, ...]
Shapes = dict[str, Shape]
"""Key, as MMDetection names it -> shape in PyTorch's layout."""

LAST_WORDS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
"""Our last word of a path, and PyTorch's."""

STATISTICS = {"running_mean": 0.0, "running_var": 1.0}
"""PyTorch's words for a norm's statistics, and those of a norm that only scales and shifts."""


def flat_by_torch_key(variables: Variables) -> dict[str, tuple[VariablePath, Any]]:
    """PyTorch key -> (path, leaf) for every leaf of ``variables``."""
    return {torch_key(path): (path, leaf) for path, leaf in flatten_dict(variables).items()}


def torch_key(path: VariablePath) -> str:
    """``('params', 'backbone', 'conv1', 'kernel')`` -> ``'backbone.conv1.weight'``."""
    return ".".join((*path[1:-1], LAST_WORDS[path[-1]]))


def torch_shape(shape: Shape) -> Shape:
    """HWIO -> OIHW for kernels; vectors stay."""
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape


def to_torch_layout(array: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    """HWIO -> OIHW for kernels; vectors stay."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def from_torch_layout(array: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    """OIHW -> HWIO for kernels; vectors stay."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def nest(leaves: dict[VariablePath, Any]) -> Variables:
    """Path -> leaf, as nested `Variables`."""
    return dict(unflatten_dict(leaves))
