"""ReLU whose gradient reads only its result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from rpn_jax.ops.cpu import activations as on_cpu

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@jax.custom_jvp
def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return max(x, 0), with a gradient that reads only the result.

    The gradient of `jax.nn.relu` reads x. XLA would then store x beside the result, and on GPUs the
    convolution before it could not apply bias, sum and ReLU in its own kernel.
    """
    return jnp.maximum(x, 0)


# XLA would simplify `y > 0` to `x > 0`, which reads x.
relu.defjvps(lambda tangent, y, x: jnp.where(y != 0, tangent, 0))


@jax.custom_jvp
def relu_of_sum(x: Float[Array, "..."], shortcut: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return max(x + shortcut, 0) of finite values, with a gradient that reads only the result.

    On GPUs a convolution's kernel can end with a sum and a ReLU, in this order.
    """
    return lax.platform_dependent(x, shortcut, cpu=on_cpu.relu_of_sum, default=_relu_of_sum)


def _relu_of_sum(x: Float[Array, "..."], shortcut: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.maximum(x + shortcut, 0)


relu_of_sum.defjvps(
    lambda tangent, y, x, shortcut: jnp.where(y != 0, tangent, 0),
    lambda tangent, y, x, shortcut: jnp.where(y != 0, tangent, 0),
)
