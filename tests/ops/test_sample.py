"""Sampling: exact counts, nothing but candidates, every candidate equally often."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.ops import sample_anchors


def labels_with(positives: int, negatives: int, ignored: int = 20, absent: int = 10) -> np.ndarray:
    labels = np.concatenate(
        [
            np.arange(positives) % 7 + 1,
            np.zeros(negatives),
            np.full(ignored, -1),
            np.full(absent, -2),
        ]
    ).astype(np.int32)
    return np.random.default_rng(0).permutation(labels)


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        (200, 300, (16, 16)),
        (16, 300, (16, 16)),
        (5, 300, (5, 27)),
        (0, 300, (0, 32)),
        (200, 3, (16, 3)),
        (2, 3, (2, 3)),
        (0, 0, (0, 0)),
    ],
)
def test_counts_are_exact_and_only_candidates_are_drawn(positives, negatives, expected):
    labels = labels_with(positives, negatives)
    sample = jax.jit(partial(sample_anchors, samples=32, positive_fraction=0.5))
    for seed in range(5):
        positive, negative = map(np.asarray, sample(labels, jax.random.key(seed)))
        assert (positive.sum(), negative.sum()) == expected
        assert (labels[positive] > 0).all()
        assert (labels[negative] == 0).all()


def test_zero_samples_takes_every_positive_and_negative():
    labels = labels_with(11, 23)
    positive, negative = sample_anchors(labels, jax.random.key(0), 0, 0.5)
    np.testing.assert_array_equal(positive, labels > 0)
    np.testing.assert_array_equal(negative, labels == 0)


def test_more_samples_than_anchors():
    labels = labels_with(3, 4, ignored=1, absent=1)
    positive, negative = sample_anchors(labels, jax.random.key(0), 256, 0.5)
    np.testing.assert_array_equal(positive, labels > 0)
    np.testing.assert_array_equal(negative, labels == 0)


def test_no_anchor_is_preferred():
    """Each candidate's frequency over 3,000 draws lies within 5 standard deviations."""
    draws = 3000
    labels = labels_with(20, 40)
    rngs = jax.random.split(jax.random.key(3), draws)
    sample = jax.jit(jax.vmap(lambda rng: sample_anchors(labels, rng, 16, 0.5)))
    drawn = [np.asarray(sampled) for sampled in sample(rngs)]
    for sampled, candidates in zip(drawn, (labels > 0, labels == 0), strict=True):
        assert set(sampled.sum(axis=1)) == {8}
        share = 8 / candidates.sum()
        deviation = np.sqrt(share * (1 - share) / draws)
        frequency = sampled.mean(axis=0)[candidates]
        assert np.abs(frequency - share).max() < 5 * deviation


@pytest.mark.parametrize(
    ("samples", "fraction", "expected"), [(5, 0.5, 2), (7, 0.25, 1), (3, 0.3, 0), (3, 1.0, 3)]
)
def test_the_limit_of_positives_is_rounded_down(samples, fraction, expected):
    positive, negative = sample_anchors(labels_with(50, 60), jax.random.key(0), samples, fraction)
    assert (int(positive.sum()), int(negative.sum())) == (expected, samples - expected)


@pytest.mark.parametrize("rank", [0.0, 0.5])
def test_equal_ranks_still_give_the_exact_count(monkeypatch, rank):
    """0 is the lowest rank that can be drawn."""
    monkeypatch.setattr(jax.random, "uniform", lambda rng, shape: jnp.full(shape, rank))
    positive, negative = sample_anchors(labels_with(50, 60), jax.random.key(0), 16, 0.5)
    assert (int(positive.sum()), int(negative.sum())) == (8, 8)


def test_the_key_decides():
    labels = labels_with(50, 60)
    same = [sample_anchors(labels, jax.random.key(s), 16, 0.5)[0] for s in (1, 1, 2)]
    np.testing.assert_array_equal(same[0], same[1])
    assert (same[0] != same[2]).any()
