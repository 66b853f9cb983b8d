"""The k highest of the values that exist."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.ops import masked_top_k


@pytest.mark.parametrize("k", [1, 7, 30, 50])
@pytest.mark.parametrize("present", [0.0, 0.3, 1.0])
def test_against_sorting(k, present):
    rng = np.random.default_rng(k)
    values = rng.integers(-5, 5, (3, 30)).astype(np.float32)
    valid = rng.random((3, 30)) < present
    top, indices, found = jax.jit(masked_top_k, static_argnums=2)(values, valid, k)
    assert top.shape == indices.shape == found.shape == (3, k)
    for row in range(3):
        expected = [i for i in np.argsort(-values[row], kind="stable") if valid[row, i]][:k]
        count = len(expected)
        assert found[row].tolist() == [True] * count + [False] * (k - count)
        assert indices[row, :count].tolist() == expected
        np.testing.assert_array_equal(top[row, :count], values[row, expected])
        assert not top[row, count:].any()
        assert not indices[row, count:].any()


def test_a_valid_minus_infinity_comes_before_what_does_not_exist():
    values = jnp.array([5.0, -jnp.inf, 1.0])
    top, indices, found = masked_top_k(values, jnp.array([False, True, True]), 3)
    assert indices[:2].tolist() == [2, 1]
    assert found.tolist() == [True, True, False]
    assert top.tolist() == [1.0, -np.inf, 0.0]
