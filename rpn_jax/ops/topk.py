"""The k highest of the values that exist."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

CHUNK = 4096
"""Values that XLA's GPU backend sorts in one kernel; twice as many take three, 200,000 take 28."""
MIN_RADIX_SORT = 22_000
"""Above so many it hands the values of a single set to CUB's radix sort, on Hopper."""


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
    _, indices = top_k(jnp.where(valid, finite, -jnp.inf), available)
    found = jnp.take_along_axis(valid, indices, axis=-1)
    indices = jnp.where(found, indices, 0)
    top = jnp.where(found, jnp.take_along_axis(values, indices, axis=-1), 0.0)
    padding = [(0, 0)] * (values.ndim - 1) + [(0, k - available)]
    return jnp.pad(top, padding), jnp.pad(indices, padding), jnp.pad(found, padding)


def top_k(
    values: Float[Array, "*batch K"], k: int
) -> tuple[Float[Array, "*batch k"], Int[Array, "*batch k"]]:
    """`jax.lax.top_k` in the form that the platform is quickest with."""
    # A single set without an axis of its own may be one of many under vmap.
    is_single = values.ndim > 1 and math.prod(values.shape[:-1]) == 1
    on_gpu = _top_k if is_single and values.shape[-1] > MIN_RADIX_SORT else top_k_of_chunks
    return jax.lax.platform_dependent(
        values, cpu=partial(_top_k, k=k), default=partial(on_gpu, k=k)
    )


def _top_k(
    values: Float[Array, "*batch K"], k: int
) -> tuple[Float[Array, "*batch k"], Int[Array, "*batch k"]]:
    top, indices = jax.lax.top_k(values, k)
    return top, indices


def top_k_of_chunks(
    values: Float[Array, "*batch K"], k: int
) -> tuple[Float[Array, "*batch k"], Int[Array, "*batch k"]]:
    """`jax.lax.top_k` for accelerators, where it sorts all values: sorts only chunks of them.

    What is among the best is among the best of its chunk. The best of all chunks are merged the
    same way, at most half as many as there were values; ties still go to the lower index.
    """
    *batch, length = values.shape
    if length <= CHUNK or k > CHUNK // 2:
        return _top_k(values, k)
    behind = [(0, 0)] * len(batch) + [(0, -length % CHUNK)]
    chunks = jnp.pad(values, behind, constant_values=-jnp.inf).reshape(*batch, -1, CHUNK)
    best, places = jax.lax.top_k(chunks, k)
    indices = places + CHUNK * jnp.arange(chunks.shape[-2], dtype=jnp.int32)[:, None]
    top, winners = top_k_of_chunks(best.reshape(*batch, -1), k)
    return top, jnp.take_along_axis(indices.reshape(*batch, -1), winners, axis=-1)
