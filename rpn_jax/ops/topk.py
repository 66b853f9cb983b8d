"""The k highest values of each set."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

CHUNK = 4096
"""Most values that XLA's GPU backend sorts in one kernel. 8,192 take three kernels, 200,000 take
28."""
MIN_RADIX_SORT = 22_000
"""Most values of a single set that XLA sorts itself on Hopper GPUs. Larger sets go to CUB's radix
sort, which is faster than sorting chunks."""


def masked_top_k(
    values: Float[Array, "*batch K"], valid: Bool[Array, "*batch K"], k: int
) -> tuple[Float[Array, "*batch k"], Int[Array, "*batch k"], Bool[Array, "*batch k"]]:
    """Return the ``k`` highest valid values, descending; among equals the lower index first.

    ``k`` may exceed K.

    Returns:
      values: the highest values; 0 where not found.
      indices: their indices into the last axis; 0 where not found.
      found: True where there was a value to return.
    """
    values, valid = jnp.asarray(values), jnp.asarray(valid, bool)
    available = min(k, values.shape[-1])
    # A valid -inf must still be ranked before values that do not exist.
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
    """Return `jax.lax.top_k` in the form that is fastest on the platform."""
    # A set without a batch axis may be one of many under vmap.
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
    """Return `jax.lax.top_k` in a form for GPUs, where `jax.lax.top_k` sorts all values.

    Only chunks are sorted. A value among the k best is among the k best of its chunk. The best of
    all chunks, at most half of the values, go through the same function. Ties still go to the lower
    index.
    """
    *batch, length = values.shape
    if length <= CHUNK or k > CHUNK // 2:
        return _top_k(values, k)
    padding = [(0, 0)] * len(batch) + [(0, -length % CHUNK)]
    chunks = jnp.pad(values, padding, constant_values=-jnp.inf).reshape(*batch, -1, CHUNK)
    best, places = jax.lax.top_k(chunks, k)
    indices = places + CHUNK * jnp.arange(chunks.shape[-2], dtype=jnp.int32)[:, None]
    top, winners = top_k_of_chunks(best.reshape(*batch, -1), k)
    return top, jnp.take_along_axis(indices.reshape(*batch, -1), winners, axis=-1)
