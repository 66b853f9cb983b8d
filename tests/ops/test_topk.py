"""The k highest of the values that exist."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.ops import masked_top_k
from rpn_jax.ops.topk import CHUNK, top_k_of_chunks


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


@pytest.mark.usefixtures("no_shape_checks")
def test_a_mask_of_numbers_gives_a_mask():
    _, _, found = masked_top_k(np.float32([1, 3, 2]), np.array([1, 0, 2]), 3)
    assert found.dtype == bool
    assert found.tolist() == [True, True, False]


@pytest.mark.parametrize("length", [7, CHUNK, CHUNK + 1, 5 * CHUNK - 3])
@pytest.mark.parametrize("k", [1, 7, CHUNK // 2, CHUNK // 2 + 1])
def test_chunks_give_what_sorting_all_gives(length, k):
    k = min(k, length)
    values = np.random.default_rng(length).integers(-500, 500, (2, length)).astype(np.float32)
    values[:, ::3] = -np.inf
    top, indices = jax.jit(top_k_of_chunks, static_argnums=1)(values, k)
    expected = np.argsort(-values, axis=-1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(top, np.take_along_axis(values, expected, axis=-1))
    one_by_one = jax.vmap(lambda row: top_k_of_chunks(row, k))(values)
    np.testing.assert_array_equal(one_by_one[1], expected)
