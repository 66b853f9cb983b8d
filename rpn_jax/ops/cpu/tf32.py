"""TF32 on CPUs: the operands of a product are rounded as NVIDIA's tensor cores round them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Float

EXPONENT_BITS, MANTISSA_BITS = 8, 10


def round_to_tf32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Round float32 values to the 8 exponent bits and 10 mantissa bits of TF32."""
    return lax.reduce_precision(x, EXPONENT_BITS, MANTISSA_BITS)
