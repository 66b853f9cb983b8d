"""Make the variables of a small model, and compare variables."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rpn_jax.config import Config
from rpn_jax.models import variable_shapes


def variables_of(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def values(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "params": {
            "backbone": {
                "conv1": {"kernel": values(7, 7, 3, 4)},
                "layer1": {
                    "0": {
                        "conv1": {"kernel": values(1, 1, 4, 4)},
                        "bn1": {"scale": values(4), "bias": values(4)},
                    }
                },
            },
            "rpn_head": {"rpn_cls": {"kernel": values(1, 1, 4, 3), "bias": values(3)}},
        },
        "batch_stats": {"backbone": {"layer1": {"0": {"bn1": {"mean": values(4)}}}}},
    }


def random_variables(config: Config) -> dict[str, Any]:
    """Return random values for every leaf: zeros and ones of new variables can hide mistakes."""
    rng = np.random.default_rng(0)

    def value(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
        if path[-1] in ("var", "scale"):
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        deviation = np.sqrt(1 / np.prod(shape[:3])) if len(shape) == 4 else 0.1
        return np.float32(deviation) * rng.standard_normal(shape, np.float32)

    leaves = flatten_dict(variable_shapes(config)).items()
    return unflatten_dict({path: value(path, leaf.shape) for path, leaf in leaves})


def assert_bit_equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        np.testing.assert_array_equal(one, other)
