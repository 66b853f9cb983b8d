"""The arithmetic of the network.

'float32' is exact. 'tf32' allows TF32 on NVIDIA GPUs, and CPUs round operands to its 10 bits.
'bfloat16' multiplies bfloat16 operands, sums in float32, and returns bfloat16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from rpn_jax.config import Precision
from rpn_jax.ops.cpu.tf32 import round_gradient, round_operand

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def compute_dtype(precision: Precision) -> jnp.dtype:
    """Return the dtype of activations."""
    return jnp.dtype(jnp.bfloat16 if precision == "bfloat16" else jnp.float32)


def lax_precision(precision: Precision) -> lax.Precision:
    """Return XLA's name for the arithmetic. XLA's default uses TF32 for float32 on NVIDIA GPUs."""
    return lax.Precision.HIGHEST if precision == "float32" else lax.Precision.DEFAULT


def matmul(
    x: Float[Array, "*batch I"],
    weights: Float[Array, "I O"],
    precision: Precision,
    out_dtype: DTypeLike | None = None,
) -> Float[Array, "*batch O"]:
    """Multiply by a matrix in the arithmetic of ``precision``.

    Args:
      x: activations.
      weights: float32.
      precision: see this module.
      out_dtype: dtype of the result. None: the dtype of activations.
    """
    dtype = compute_dtype(precision)
    operands = x.astype(dtype), weights.astype(dtype)

    def multiply(x: Array, weights: Array) -> Array:
        return jnp.matmul(
            x, weights, precision=lax_precision(precision), preferred_element_type=out_dtype
        )

    if precision != "tf32":
        return multiply(*operands)

    def multiply_on_cpu(x: Array, weights: Array) -> Array:
        return round_gradient(multiply(round_operand(x), round_operand(weights)))

    return lax.platform_dependent(*operands, cpu=multiply_on_cpu, default=multiply)
