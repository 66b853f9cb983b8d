"""Make the variables of a small model, and compare variables."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


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


def assert_bit_equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        np.testing.assert_array_equal(one, other)
