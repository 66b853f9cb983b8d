"""Proposals: against the reference's figures and a plain loop."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    Config,
    ModelConfig,
    ProposalConfig,
    RPNHeadConfig,
)
from rpn_jax.errors import UserError
from rpn_jax.models.rpn.proposals import propose
from rpn_jax.ops import clip_boxes, decode_boxes, grid_anchors, level_validity
from rpn_jax.structures import RPNOutputs
from tests.oracles import detection
from tests.oracles.golden import CASES, case_anchors, load_case
from tools.parity.cases import Case

SHAPES = [(8, 10), (4, 5), (2, 3)]
ANCHORS = AnchorConfig(strides=(4, 8, 16), scales=(2.0,))
CONFIG = Config(
    model=ModelConfig(
        backbone=BackboneConfig(depth=18, num_stages=2), rpn=RPNHeadConfig(anchors=ANCHORS)
    ),
    rpn_proposals=ProposalConfig(nms_pre=50, nms_iou=0.5, max_proposals=40),
)
SIZES = np.array([[32, 40], [20, 30], [9, 33]], np.int32)
FACTORS = np.array([[1.0, 1.0], [0.5, 0.75], [2.0, 1.5]], np.float32)


def random_outputs(seed: int) -> RPNOutputs:
    rng = np.random.default_rng(seed)

    def draw(scale: float, *rest: int) -> tuple[jax.Array, ...]:
        shapes = [(len(SIZES), *shape, *rest) for shape in SHAPES]
        return tuple(jnp.asarray(rng.normal(0, scale, s), jnp.float32) for s in shapes)

    return RPNOutputs(objectness=draw(2, 3), deltas=draw(0.5, 3, 4))


propose_jitted = jax.jit(partial(propose, CONFIG))


@pytest.mark.parametrize(("max_proposals", "min_size"), [(40, 0.0), (200, 3.0)])
def test_against_the_loop(max_proposals, min_size):
    settings = replace(CONFIG.rpn_proposals, max_proposals=max_proposals, min_size=min_size)
    config = replace(CONFIG, rpn_proposals=settings)
    outputs = random_outputs(0)
    proposals = jax.jit(partial(propose, config))(outputs, SIZES, FACTORS)
    assert proposals.boxes.shape == (3, max_proposals, 4)
    anchors = [np.asarray(level) for level in grid_anchors(SHAPES, ANCHORS)]
    valid = [np.asarray(level) for level in level_validity(SHAPES, ANCHORS, SIZES)]
    for i, (height, width) in enumerate(SIZES):
        levels = [
            (np.asarray(o[i]).reshape(-1), np.asarray(d[i]).reshape(-1, 4), a, v[i])
            for o, d, a, v in zip(outputs.objectness, outputs.deltas, anchors, valid, strict=True)
        ]
        boxes, scores = detection.propose(
            levels, (height, width), FACTORS[i], 50, 0.5, max_proposals, min_size
        )
        count = len(scores)
        assert count > 0
        assert proposals.valid[i].tolist() == [True] * count + [False] * (max_proposals - count)
        np.testing.assert_allclose(proposals.boxes[i, :count], boxes, atol=1e-4)
        np.testing.assert_allclose(proposals.scores[i, :count], scores, atol=1e-6)
        assert not proposals.boxes[i, count:].any()
        assert not proposals.scores[i, count:].any()


def test_without_factors_boxes_stay_in_resized_pixels_and_inside_the_picture():
    outputs = random_outputs(1)
    proposals = propose_jitted(outputs, SIZES)
    ones = propose_jitted(outputs, SIZES, jnp.ones((3, 2)))
    np.testing.assert_array_equal(proposals.boxes, ones.boxes)
    for boxes, (height, width) in zip(proposals.boxes, SIZES, strict=True):
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= width
        assert boxes[:, 3].max() <= height


def test_a_larger_canvas_changes_nothing():
    """Cells beyond the pictures' own sizes do not count, however sure the head is of them."""
    outputs = random_outputs(2)

    def widen(level: jax.Array, value: float) -> jax.Array:
        padding = [(0, 0), (0, 4), (0, 3)] + [(0, 0)] * (level.ndim - 3)
        return jnp.pad(level, padding, constant_values=value)

    sizes = np.array([[32, 40]] * 3, np.int32)
    narrow = RPNOutputs(
        tuple(widen(x, -50.0) for x in outputs.objectness),
        tuple(widen(x, 0.0) for x in outputs.deltas),
    )
    beyond = [
        np.asarray(level).reshape(3, *x.shape[1:])
        for level, x in zip(
            level_validity(narrow.level_shapes, ANCHORS, sizes),
            narrow.objectness,
            strict=True,
        )
    ]
    loud = RPNOutputs(
        tuple(jnp.where(v, x, 50.0) for v, x in zip(beyond, narrow.objectness, strict=True)),
        narrow.deltas,
    )
    assert any((~v).any() for v in beyond)
    expected, got = propose_jitted(narrow, sizes), propose_jitted(loud, sizes)
    np.testing.assert_array_equal(got.boxes, expected.boxes)
    np.testing.assert_array_equal(got.scores, expected.scores)


def test_saturated_scores_and_huge_deltas_stay_finite():
    outputs = random_outputs(3)
    wild = RPNOutputs(
        tuple(x * 1e4 for x in outputs.objectness), tuple(x * 1e30 for x in outputs.deltas)
    )
    proposals = propose_jitted(wild, SIZES, FACTORS)
    assert np.isfinite(proposals.boxes).all()
    assert np.isfinite(proposals.scores).all()
    assert (np.diff(proposals.scores, axis=1) <= 0).all()


def test_anchors_whose_logit_is_nan_give_no_box():
    outputs = random_outputs(3)

    def with_first_row(value: float) -> RPNOutputs:
        row = outputs.objectness[0].at[:, 0].set(value)
        return replace(outputs, objectness=(row, *outputs.objectness[1:]))

    proposals, expected = (
        propose_jitted(with_first_row(value), SIZES, FACTORS) for value in (jnp.nan, -1e9)
    )
    assert np.isfinite(proposals.scores).all()
    found = proposals.scores > 0.2
    assert found.any()
    np.testing.assert_array_equal(proposals.boxes[found], expected.boxes[found])


def test_anchors_whose_deltas_are_nan_give_no_box():
    outputs = random_outputs(3)
    row = outputs.deltas[0].at[:, 0].set(jnp.nan)
    damaged = replace(outputs, deltas=(row, *outputs.deltas[1:]))
    proposals = propose_jitted(damaged, SIZES, FACTORS)
    assert proposals.valid.any()
    assert np.isfinite(proposals.boxes).all()


def test_bfloat16_outputs_give_float32_proposals():
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_outputs(4))
    upcast = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    got, expected = propose_jitted(low, SIZES), propose_jitted(upcast, SIZES)
    assert got.boxes.dtype == got.scores.dtype == jnp.float32
    np.testing.assert_array_equal(got.boxes, expected.boxes)
    np.testing.assert_array_equal(got.scores, expected.scores)


def test_wrong_number_of_levels_is_refused():
    with pytest.raises(UserError, match="the network has 3 levels"):
        propose(Config(), random_outputs(0), SIZES)


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_reference(name):
    case = load_case(name)
    outputs = with_ties_broken_as_in_the_reference(case)
    proposals = jax.jit(partial(propose, case.config))(outputs, case.image_sizes)
    for i in range(len(case.image_sizes)):
        boxes = np.asarray(proposals.boxes[i][proposals.valid[i]])
        scores = np.asarray(proposals.scores[i][proposals.valid[i]])
        same = same_proposals(case.fields[f"proposals_{i}"], boxes, scores)
        assert same.any(axis=1).mean() >= 0.995
        assert same.any(axis=0).mean() >= 0.995
        assert (np.diff(scores) <= 0).all()


def same_proposals(reference: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Which of the reference's rows are which boxes, within 0.05 pixels and a score of 1e-4."""
    distances = np.abs(reference[:, None, :4] - boxes[None]).max(axis=-1)
    return (distances <= 0.05) & (np.abs(reference[:, None, 4] - scores[None]) <= 1e-4)


def with_ties_broken_as_in_the_reference(case: Case) -> RPNOutputs:
    """The outputs of a case with distinct logits where float32 scores round to (nearly) 1.

    The reference sorts equal scores with an unstable sort, so their order, and then which of them
    survive the NMS, is an accident of its machine. Here those it kept come first, in its order;
    scores move by less than 1e-4.
    """
    shapes = [level.shape for level in case.outputs.objectness]
    pictures = len(case.image_sizes)
    logits = np.concatenate([x.reshape(pictures, -1) for x in case.outputs.objectness], axis=1)
    deltas = np.concatenate([x.reshape(pictures, -1, 4) for x in case.outputs.deltas], axis=1)
    anchors = case_anchors(case)
    decoded = jax.jit(lambda: clip_boxes(decode_boxes(anchors, deltas), case.image_sizes))()
    for i in range(pictures):
        (sure,) = np.nonzero(logits[i] > 9.3)
        scores = np.float32(1) / (np.float32(1) + np.exp(-logits[i, sure]))
        reference = case.fields[f"proposals_{i}"]
        same = np.abs(reference[:, None, :4] - np.asarray(decoded[i])[sure]).max(axis=-1) <= 1e-3
        same &= np.abs(reference[:, None, 4] - scores) <= 1e-6
        rank = np.where(same.any(axis=0), same.argmax(axis=0), len(reference))
        order = np.lexsort([rank, -scores])
        logits[i, sure[order]] = np.linspace(30, 9.3, len(sure))
    splits = np.cumsum([np.prod(shape[1:]) for shape in shapes])[:-1]
    levels = [
        jnp.asarray(level.reshape(shape))
        for level, shape in zip(np.split(logits, splits, axis=1), shapes, strict=True)
    ]
    return RPNOutputs(tuple(levels), case.outputs.deltas)
