"""TF32 on CPUs: the operands of a product are rounded as NVIDIA's tensor cores round them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Float

EXPONENT_BITS, MANTISSA_BITS = 8, 10


def round_to_tf32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Round float32 values to the 8 exponent bits and 10 mantissa bits of TF32."""
    return lax.reduce_precision(x, EXPONENT_BITS, MANTISSA_BITS)


@jax.custom_vjp
def round_operand(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Round an operand of a product to TF32. Its gradient is not rounded."""
    return round_to_tf32(x)


round_operand.defvjp(lambda x: (round_to_tf32(x), None), lambda _, gradient: (gradient,))


@jax.custom_vjp
def round_gradient(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return ``x``. Its gradient is rounded to TF32: it is an operand of the products behind it."""
    return x


round_gradient.defvjp(lambda x: (x, None), lambda _, gradient: (round_to_tf32(gradient),))
