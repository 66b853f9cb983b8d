"""Losses and shares as a sum and the number that divides it, so that parts of a batch can be added.

The mean of a batch is the sum of its parts' totals, divided by the sum of their divisors. It is
not the mean of the parts' means: parts can have different numbers of samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

    Scalars = dict[str, Float[Array, ""]]


class Mean(NamedTuple):
    """A mean over anchors or boxes, before the division."""

    total: Float[Array, ""]
    """float32 sum."""
    divisor: Float[Array, ""]
    """float32 number that divides it. If it is 0, so is the total."""


def share(chosen: Bool[Array, "*n"], among: Bool[Array, "*n"]) -> Mean:
    """Return the share of ``chosen`` in ``among``, which holds all of them."""
    return Mean(jnp.sum(chosen).astype(jnp.float32), jnp.sum(among).astype(jnp.float32))


def divisors_of(means: dict[str, Mean], axis_name: str | None = None) -> Scalars:
    """Return the divisor of each mean, averaged over the devices' mapped axis if it is given.

    The mean of the devices' quotients is then the mean over all devices.
    """
    divisors = {name: mean.divisor for name, mean in means.items()}
    return divisors if axis_name is None else jax.lax.pmean(divisors, axis_name)


def divide(means: dict[str, Mean], divisors: Scalars) -> Scalars:
    """Return each total divided by its entry in ``divisors``, 0 where that is 0."""
    least = jnp.finfo(jnp.float32).tiny
    return {name: mean.total / jnp.maximum(divisors[name], least) for name, mean in means.items()}
