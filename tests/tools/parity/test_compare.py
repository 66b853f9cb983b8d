"""The arithmetic of the comparison, against plain loops and hand-made tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.tools.parity.loops import loop_match
from tools.parity.compare import (
    BOX_TOLERANCE,
    SCORE_TOLERANCE,
    compare_labels,
    compare_proposals,
    count_out_of_order,
    count_repeats,
    match_proposals,
    relative,
    relative_l2,
    worst,
)


def random_proposals(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return proposals at a few places, with noise of about the tolerance."""
    places = np.arange(40.0).reshape(8, 5)
    rows = places[rng.integers(0, 8, count)]
    rows[:, :4] += rng.normal(0, BOX_TOLERANCE, (count, 4))
    rows[:, 4] = rng.choice([0.5, 0.5 + SCORE_TOLERANCE / 2, 0.9], count)
    return rows.astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0])
def test_matching_equals_a_plain_loop(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    ours, reference = random_proposals(rng, 60), random_proposals(rng, 50)
    tolerances = (scale * BOX_TOLERANCE, scale * SCORE_TOLERANCE)
    partners = match_proposals(ours, reference, *tolerances)
    np.testing.assert_array_equal(partners, loop_match(ours, reference, *tolerances))
    assert 0 < np.count_nonzero(partners >= 0) < 50


def test_the_tolerances_of_parity_are_the_usual_ones() -> None:
    rng = np.random.default_rng(0)
    ours, reference = random_proposals(rng, 60), random_proposals(rng, 50)
    expected = loop_match(ours, reference, BOX_TOLERANCE, SCORE_TOLERANCE)
    np.testing.assert_array_equal(match_proposals(ours, reference), expected)


def test_matching_without_proposals() -> None:
    none, some = np.zeros((0, 5), np.float32), np.ones((3, 5), np.float32)
    assert match_proposals(none, some).tolist() == [-1, -1, -1]
    assert match_proposals(some, none).tolist() == []
    assert compare_proposals(none, none).found == 1
    assert compare_proposals(some, none).found == compare_proposals(none, some).found == 0


def test_surplus_proposals_lower_the_share_and_a_repeated_one_is_found_once() -> None:
    rng = np.random.default_rng(0)
    reference = np.sort(rng.uniform(0, 99, (10, 5)), axis=0)[::-1].astype(np.float32)
    assert compare_proposals(reference, reference) == (1.0, 0, 0)
    repeated = np.concatenate([reference[:9], reference[:1]])
    assert compare_proposals(repeated, reference) == (0.9, 0, 1)
    assert compare_proposals(np.repeat(reference, 2, axis=0), reference) == (0.5, 0, 10)
    assert compare_proposals(repeated, repeated).repeated == 0
    assert count_repeats(repeated) == 1


@pytest.mark.parametrize(
    ("partners", "scores", "expected"),
    [
        ([0, 1, 2], [0.9, 0.8, 0.7], 0),
        ([1, 0, 2], [0.9, 0.8, 0.7], 1),
        ([2, 0, 1], [0.9, 0.8, 0.7], 2),
        ([1, 0, 2], [0.9, 0.9, 0.7], 0),
        ([1, 0, 2], [0.900005, 0.9, 0.7], 0),
        ([1, 0, 2], [0.90002, 0.9, 0.7], 1),
        ([1, -1, 0], [0.9, 0.8, 0.7], 1),
        ([-1, 5, 6], [0.9, 0.8, 0.7], 0),
        ([], [], 0),
    ],
)
def test_only_clearly_better_proposals_count_for_the_order(
    partners: list[int], scores: list[float], expected: int
) -> None:
    assert count_out_of_order(np.array(partners, int), np.array(scores, np.float32)) == expected


def test_the_first_anchor_with_another_label_is_described() -> None:
    labels = np.array([-2, -1, 0, 3, 0])
    anchors = np.arange(20, dtype=np.float32).reshape(5, 4)
    assert compare_labels(labels, labels, anchors).value == 0
    measured = compare_labels(labels, np.array([-2, -1, 0, 2, 1]), anchors)
    assert measured == (2, "anchor 3 (12, 13, 14, 15): ours 3, reference 2")


def test_relative_differences() -> None:
    assert relative(11.0, 10.0) == pytest.approx(0.1)
    assert relative(0.0, 0.0) == 0
    reference = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)
    assert relative_l2(reference, reference) == 0
    assert relative_l2(reference + np.array([[0, 0], [0, 0.5]]), reference) == pytest.approx(0.1)
    assert relative_l2(np.ones(1), np.zeros(1)) > 1e6


def test_the_worst_figure_is_the_largest_or_nan() -> None:
    assert worst({"a": 1.0, "b": 3.0, "c": 2.0}) == (3.0, "b")
    assert worst({"a": 1.0, "b": math.nan, "c": 2.0}).detail == "b"
