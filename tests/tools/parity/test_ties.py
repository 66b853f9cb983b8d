"""Equal scores get the reference's order, and no score changes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.config import AnchorConfig, BackboneConfig, Config, ModelConfig, RPNHeadConfig
from rpn_jax.models.rpn.proposals import propose
from rpn_jax.ops import base_anchors
from rpn_jax.structures import Proposals, RPNOutputs
from tools.parity.compare import compare_proposals
from tools.parity.ties import every_proposal, lift_chosen, settle_ties

SIZES = jnp.array([[64, 64], [50, 41]], jnp.int32)
FACTORS = jnp.array([[2.0, 1.5], [0.5, 0.8]], jnp.float32)
SHAPES = [(16, 16)]
CONFIG = Config(
    model=ModelConfig(
        backbone=BackboneConfig(num_stages=1),
        neck="none",
        rpn=RPNHeadConfig(anchors=AnchorConfig(strides=(4,), scales=(8.0,))),
    )
)
"""One level only. At a border two levels can propose the same box, and the box does not say which
level it comes from."""
propose_jitted = jax.jit(partial(propose, CONFIG))
SATURATED = 20.0


def outputs_with_ties(rng: np.random.Generator) -> RPNOutputs:
    """Return outputs of which a third of the scores is exactly 1, with logits from 17 to 23."""
    objectness, deltas = [], []
    for rows, columns in SHAPES:
        shape = (2, rows, columns, 3)
        logits = rng.normal(0, 2, shape)
        saturated = rng.uniform(size=shape) < 0.3
        logits[saturated] = SATURATED + rng.uniform(-3, 3, saturated.sum())
        objectness.append(jnp.asarray(logits, jnp.float32))
        deltas.append(jnp.asarray(rng.normal(0, 0.1, (*shape, 4)), jnp.float32))
    return RPNOutputs(tuple(objectness), tuple(deltas))


def with_other_ties(outputs: RPNOutputs, rng: np.random.Generator) -> RPNOutputs:
    """Return outputs with the same scores and other logits where the score is 1."""
    return replace(
        outputs,
        objectness=tuple(
            jnp.where(level > 17, SATURATED + rng.uniform(-3, 3, level.shape), level)
            for level in outputs.objectness
        ),
    )


def rows_of(proposals: Proposals) -> list[np.ndarray]:
    rows = np.concatenate([proposals.boxes, proposals.scores[..., None]], axis=-1)
    return [row[valid] for row, valid in zip(rows, np.asarray(proposals.valid), strict=True)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("factors", [None, FACTORS])
def test_settled_ties_give_the_reference_s_proposals(seed: int, factors: jax.Array | None) -> None:
    rng = np.random.default_rng(seed)
    outputs = outputs_with_ties(rng)
    reference = rows_of(propose_jitted(with_other_ties(outputs, rng), SIZES, factors))
    as_proposed = rows_of(propose_jitted(outputs, SIZES, factors))
    settled_outputs = settle_ties(CONFIG, outputs, SIZES, factors, reference)
    settled = rows_of(propose_jitted(settled_outputs, SIZES, factors))
    for row in range(2):
        assert compare_proposals(as_proposed[row], reference[row]).found < 0.95
        assert compare_proposals(settled[row], reference[row]).found == 1
    for before, after in zip(outputs.objectness, settled_outputs.objectness, strict=True):
        np.testing.assert_array_equal(jax.nn.sigmoid(before), jax.nn.sigmoid(after))


def test_a_proposal_that_the_network_does_not_make_is_not_found() -> None:
    rng = np.random.default_rng(0)
    outputs = outputs_with_ties(rng)
    reference = rows_of(propose_jitted(outputs, SIZES))
    reference[0][:10, 2] += 1
    settled = rows_of(propose_jitted(settle_ties(CONFIG, outputs, SIZES, None, reference), SIZES))
    assert compare_proposals(settled[0], reference[0]).found <= 1 - 10 / len(reference[0])


def test_every_proposal_is_nan_where_no_anchor_exists() -> None:
    outputs = RPNOutputs(
        tuple(jnp.zeros((2, *shape, 3)) for shape in SHAPES),
        tuple(jnp.zeros((2, *shape, 3, 4)) for shape in SHAPES),
    )
    sizes = jnp.array([[64, 64], [32, 30]], jnp.int32)
    rows = every_proposal(CONFIG, outputs, sizes, FACTORS)
    exists = np.isfinite(rows).all(axis=-1)
    assert exists[0].all()
    assert exists[1].sum() == 3 * 8 * 8
    first = np.clip(base_anchors(4, (8.0,), (0.5, 1.0, 2.0)), 0, 64) / np.tile(FACTORS[0], 2)
    np.testing.assert_allclose(rows[0, :3], np.pad(first, ((0, 0), (0, 1)), constant_values=0.5))


def test_chosen_logits_are_raised_within_their_group_only() -> None:
    logits = np.array([1.0, 2.0, 3.0, 4.0, 5.0], np.float32)
    scores = np.array([0.1, 0.1, np.nan, 0.2, 0.1], np.float32)
    chosen = np.array([True, False, False, True, False])
    assert lift_chosen(logits, scores, chosen).tolist() == [5, 1, 3, 4, 1]
