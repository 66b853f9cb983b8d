"""Division with the result that IEEE 754 asks for, on every platform.

XLA divides float32 numbers on NVIDIA GPUs with an error of up to two units in the last place. That
is enough to break ties that the reference's labels depend on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Float

UPPER_BITS = 0xFFFFF000
"""The sign, the exponent and the upper half of a float32's digits."""


def quotient(a: Float[Array, "*n"], b: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return ``a / b``, rounded to the nearest float32.

    Args:
      a: 0, or of a size between 1e-20 and 1e20.
      b: not 0, and of such a size, and so is ``a / b``.
    """
    return lax.platform_dependent(
        a, b, cpu=lax.div, default=lambda a, b: corrected_quotient(a, b, a / b)
    )


def corrected_quotient(
    a: Float[Array, "*n"], b: Float[Array, "*n"], guess: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """Return `quotient` from a guess that is off by a few units in the last place."""
    # The rest is computed without rounding: halves of 12 digits have exact products, and each
    # difference is small enough. Compilers may fuse these products with the differences, which
    # changes nothing where a product is exact.
    upper, lower = _halves(guess)
    b_upper, b_lower = _halves(b)
    rest = ((a - upper * b_upper) - upper * b_lower) - lower * b_upper - lower * b_lower
    return guess + rest / b


def _halves(x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Return two float32 of 12 digits each, whose sum is ``x``."""
    bits = lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(UPPER_BITS)
    upper = lax.bitcast_convert_type(bits, jnp.float32)
    return upper, x - upper
