"""The CPU form of a residual sum followed by a ReLU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def relu_of_sum(x: Float[Array, "..."], shortcut: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return max(x + shortcut, 0) of finite values, with the sum as the last operation.

    XLA's CPU backend recomputes a cheap op in every consumer instead of storing its result. With
    the ReLU last, each residual block would recompute the sums of all blocks before it. A sum is
    stored, and max(x, -shortcut) + shortcut has the same bits.
    """
    return jnp.maximum(x, -shortcut) + shortcut
