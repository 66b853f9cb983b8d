"""Division is rounded to the nearest float32, whatever the platform's own division returns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.ops.quotient import corrected_quotient, quotient


def made_pairs(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return numerators and denominators: overlaps and unions, and quotients near a midpoint."""
    rng = np.random.default_rng(seed)
    b = np.exp(rng.uniform(-14, 14, count)).astype(np.float32)
    a = (b * rng.uniform(0, 1, count)).astype(np.float32)
    # Quotients that lie close to the middle between two float32 numbers round either way.
    near = rng.uniform(0.5, 1, count).astype(np.float32)
    middle = near.astype(np.float64) + np.spacing(near).astype(np.float64) / 2
    return np.concatenate([a, (middle * b).astype(np.float32)]), np.concatenate([b, b])


def moved(x: np.ndarray, steps: int) -> np.ndarray:
    """Return positive float32 numbers moved by units in the last place."""
    return (np.maximum(x.view(np.int32) + steps, 0)).view(np.float32)


@pytest.mark.parametrize("steps", [-3, -2, -1, 0, 1, 2, 3])
def test_a_wrong_last_place_is_corrected(steps: int) -> None:
    a, b = made_pairs(seed=0, count=300_000)
    expected = a / b
    found = jax.jit(corrected_quotient)(a, b, moved(expected, steps))
    np.testing.assert_array_equal(found, expected)


def test_zero_stays_zero() -> None:
    zeros, ones = jnp.zeros(3), jnp.array([1e-6, 1.0, 1e8])
    np.testing.assert_array_equal(corrected_quotient(zeros, ones, zeros), zeros)


@pytest.mark.parametrize("wrap", [jax.jit, lambda f: jax.jit(jax.vmap(f)), lambda f: f])
def test_quotient_has_numpy_s_bits(wrap) -> None:
    a, b = (x.reshape(10, -1) for x in made_pairs(seed=1, count=1000))
    np.testing.assert_array_equal(wrap(quotient)(a, b), a / b)
