"""A random, balanced sample of the labelled anchors (Ren et al. 2015, section 3.1.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rpn_jax.ops.assign import FOLDS, NEGATIVE
from rpn_jax.ops.topk import top_k

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


def sample_anchors(
    labels: Int[Array, " K"], rng: PRNGKeyArray, samples: int, positive_fraction: float
) -> tuple[Bool[Array, " K"], Bool[Array, " K"]]:
    """Sample anchors of one picture uniformly, without replacement.

    At most ``int(samples * positive_fraction)`` are positive. Negatives fill the rest.

    Args:
      labels: what `assign_anchors` returned.
      rng: random key of the sample.
      samples: anchors to sample. Fewer are sampled if fewer exist. 0: all positive and negative
        anchors, without randomness.
      positive_fraction: largest share of positives among the samples.

    Returns:
      The sampled positives and the sampled negatives, both bool[K].
    """
    positive, negative = labels > NEGATIVE, labels == NEGATIVE
    if samples == 0:
        return positive, negative
    ranks = jax.random.uniform(rng, (FOLDS, -(-len(labels) // FOLDS))).reshape(-1)[: len(labels)]
    most_positives = int(samples * positive_fraction)
    sampled_positive = _highest_ranked(ranks, positive, most_positives, most_positives)
    still_wanted = samples - jnp.sum(sampled_positive)
    return sampled_positive, _highest_ranked(ranks, negative, still_wanted, samples)


def _highest_ranked(
    ranks: Float[Array, " K"],
    candidates: Bool[Array, " K"],
    count: Int[Array, ""] | int,
    most: int,
) -> Bool[Array, " K"]:
    """Return a mask of the ``count`` highest-ranked candidates. ``most`` bounds it statically."""
    most = min(most, len(ranks))
    values, indices = top_k(jnp.where(candidates, ranks, -1.0), most)
    chosen = (jnp.arange(most) < count) & (values >= 0.0)
    return jnp.zeros_like(candidates).at[indices].set(chosen, unique_indices=True)
