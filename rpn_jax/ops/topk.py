"""The k highest of the values that exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


def masked_top_k(
    values: Float[Array, "*batch K"], valid: Bool[Array, "*batch K"], k: int
) -> tuple[Float[Array, "*batch k"], Int[Array, "*batch k"], Bool[Array, "*batch k"]]:
    """The ``k`` highest valid values, descending, the lower index first among equals.

    Returns:
      The values, their indices into the last axis, and True where there was a value to return;
      elsewhere value and index are 0. ``k`` may exceed K.
    """
    available = min(k, values.shape[-1])
    # A valid -inf must still come before what does not exist.
    finite = jnp.maximum(values, jnp.finfo(values.dtype).min)
    _, indices = jax.lax.top_k(jnp.where(valid, finite, -jnp.inf), available)
    found = jnp.take_along_axis(valid, indices, axis=-1)
    indices = jnp.where(found, indices, 0)
    top = jnp.where(found, jnp.take_along_axis(values, indices, axis=-1), 0.0)
    padding = [(0, 0)] * (values.ndim - 1) + [(0, k - available)]
    return jnp.pad(top, padding), jnp.pad(indices, padding), jnp.pad(found, padding)
