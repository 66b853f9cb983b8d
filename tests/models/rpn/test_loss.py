"""The loss: against the reference's figures and a plain loop, over devices, with padding."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from rpn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    Config,
    ModelConfig,
    RPNHeadConfig,
    RPNLossConfig,
)
from rpn_jax.errors import UserError
from rpn_jax.models.rpn.loss import rpn_loss
from rpn_jax.models.rpn.targets import at_sampled_cells, batch_targets
from rpn_jax.ops import anchor_validity, grid_anchors
from rpn_jax.structures import RPNOutputs
from tests.oracles import detection
from tests.oracles.boxes import random_boxes
from tests.oracles.golden import CASES, load_case, padded_boxes

SHAPES = [(8, 10), (4, 5), (2, 3)]
ANCHORS = AnchorConfig(strides=(4, 8, 16), scales=(2.0,))
CONFIG = Config(
    model=ModelConfig(
        backbone=BackboneConfig(depth=18, num_stages=2), rpn=RPNHeadConfig(anchors=ANCHORS)
    ),
    rpn_loss=RPNLossConfig(samples_per_image=0),
)
SIZES = np.array([[32, 40], [20, 30], [32, 33], [9, 40]], np.int32)
RNG = jax.random.key(0)


def random_outputs(seed: int, batch: int) -> RPNOutputs:
    rng = np.random.default_rng(seed)

    def draw(*rest: int) -> tuple[jax.Array, ...]:
        return tuple(jnp.asarray(rng.normal(size=(batch, *s, *rest)), jnp.float32) for s in SHAPES)

    return RPNOutputs(objectness=draw(3), deltas=draw(3, 4))


def random_ground_truth(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four pictures with 6, 1, 3 and no boxes."""
    boxes = random_boxes(np.random.default_rng(seed), len(SIZES), 6, size=40)
    mask = np.arange(6) < np.array([6, 1, 3, 0])[:, None]
    return np.where(mask[..., None], boxes, 0), mask


def looped_loss(outputs: RPNOutputs, boxes: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    batch = len(boxes)
    logits = np.concatenate([np.asarray(x).reshape(batch, -1) for x in outputs.objectness], 1)
    deltas = np.concatenate([np.asarray(x).reshape(batch, -1, 4) for x in outputs.deltas], 1)
    anchors = np.concatenate(jax.jit(lambda: grid_anchors(SHAPES, ANCHORS))())
    valid = np.asarray(jax.jit(lambda: anchor_validity(SHAPES, ANCHORS, SIZES))())
    totals = np.zeros(3)
    for i in range(batch):
        labels = detection.assign(anchors, valid[i], boxes[i], mask[i])
        totals += detection.losses(logits[i], deltas[i], anchors, labels, boxes[i])
    return totals[0] / totals[2], totals[1] / totals[2]


jitted_loss = jax.jit(partial(rpn_loss, CONFIG))


@pytest.mark.parametrize("seed", range(3))
def test_against_the_loop(seed):
    outputs, (boxes, mask) = random_outputs(seed, 4), random_ground_truth(seed)
    losses = jitted_loss(outputs, boxes, mask, SIZES, RNG)
    expected = looped_loss(outputs, boxes, mask)
    np.testing.assert_allclose(losses["loss_rpn_cls"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(losses["loss_rpn_bbox"], expected[1], rtol=1e-5)
    assert {loss.dtype for loss in losses.values()} == {jnp.dtype("float32")}


def test_no_box_in_the_whole_batch():
    outputs, (boxes, mask) = random_outputs(0, 4), random_ground_truth(0)

    def total(outputs):
        return sum(rpn_loss(CONFIG, outputs, boxes, mask & False, SIZES, RNG).values())

    loss, gradient = jax.jit(jax.value_and_grad(total))(outputs)
    nothing = np.zeros_like(mask)
    np.testing.assert_allclose(loss, looped_loss(outputs, boxes, nothing)[0], rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert not any(np.any(level) for level in gradient.deltas)


def test_masked_boxes_and_boxes_without_area_change_nothing():
    outputs, (boxes, mask) = random_outputs(1, 4), random_ground_truth(1)
    expected = jitted_loss(outputs, boxes, mask, SIZES, RNG)
    junk = np.where(mask[..., None], boxes, 7.5)
    flat = junk.copy()
    flat[3, 2] = [5, 5, 30, 5]
    shown = mask.copy()
    shown[3, 2] = True
    for other in ((junk, mask), (flat, shown)):
        losses = jitted_loss(outputs, *other, SIZES, RNG)
        for key, value in expected.items():
            assert losses[key] == value


def test_gradient_reaches_sampled_anchors_only():
    config = replace(CONFIG, rpn_loss=RPNLossConfig(samples_per_image=16))
    outputs, (boxes, mask) = random_outputs(2, 4), random_ground_truth(2)
    targets = jax.jit(partial(batch_targets, config, SHAPES))(boxes, mask, SIZES, RNG)

    def total(outputs):
        return sum(rpn_loss(config, outputs, boxes, mask, SIZES, RNG).values())

    gradient = jax.jit(jax.grad(total))(outputs)
    logits = np.concatenate([g.reshape(4, -1) for g in gradient.objectness], axis=1)
    deltas = np.concatenate([g.reshape(4, -1, 4) for g in gradient.deltas], axis=1)
    np.testing.assert_array_equal(logits != 0, targets.positive | targets.negative)
    np.testing.assert_array_equal((deltas != 0).all(axis=-1), targets.positive)
    assert (targets.positive | targets.negative).sum(axis=1).tolist() == [16] * 4


@pytest.mark.parametrize("samples", [1, 16, 106])
def test_sampled_cells_hold_every_sampled_anchor(samples):
    """Of 106 cells; the fourth picture has no box, the pictures' own cells are fewer."""
    config = replace(CONFIG, rpn_loss=RPNLossConfig(samples_per_image=samples))
    boxes, mask = random_ground_truth(3)

    def both(*arguments):
        targets = batch_targets(config, SHAPES, *arguments)
        return targets, *at_sampled_cells(targets, 3, samples)

    targets, cells, at_cells = jax.jit(both)(boxes, mask, SIZES, RNG)
    assert cells.shape == (4, samples)
    for picture, of_picture in enumerate(np.asarray(cells)):
        assert len(set(of_picture.tolist())) == samples
        assert 0 <= of_picture.min() <= of_picture.max() < 106
        anchors = (of_picture[:, None] * 3 + np.arange(3)).ravel()
        for everywhere, at_some in zip(targets, at_cells, strict=True):
            np.testing.assert_array_equal(everywhere[picture][anchors], at_some[picture])
        elsewhere = np.setdiff1d(np.arange(3 * 106), anchors)
        assert not np.any((targets.positive | targets.negative)[picture][elsewhere])


def test_more_samples_than_cells_take_every_cell():
    boxes, mask = random_ground_truth(3)
    targets = jax.jit(partial(batch_targets, CONFIG, SHAPES))(boxes, mask, SIZES, RNG)
    cells, at_cells = jax.jit(partial(at_sampled_cells, anchors_per_cell=3, samples=107))(targets)
    np.testing.assert_array_equal(np.sort(cells), np.tile(np.arange(106), (4, 1)))
    assert at_cells.deltas.shape == (4, 318, 4)


def test_each_picture_of_a_batch_is_sampled_apart():
    config = replace(CONFIG, rpn_loss=RPNLossConfig(samples_per_image=16))
    boxes, mask = random_ground_truth(2)
    same = [np.repeat(part[:1], 4, axis=0) for part in (boxes, mask, SIZES)]
    negative = np.asarray(jax.jit(partial(batch_targets, config, SHAPES))(*same, RNG).negative)
    assert len({row.tobytes() for row in negative}) == 4


def test_devices_average_to_the_loss_of_the_global_batch():
    """Two devices with different numbers of samples; the mapped axis is a vmap's here."""
    outputs, (boxes, mask) = random_outputs(3, 4), random_ground_truth(3)
    expected = jitted_loss(outputs, boxes, mask, SIZES, RNG)
    arguments = jax.tree.map(
        lambda x: jnp.reshape(x, (2, 2, *x.shape[1:])), (outputs, boxes, mask, SIZES)
    )
    one_device = partial(rpn_loss, CONFIG, rng=RNG, axis_name="devices")
    sharded = jax.jit(jax.vmap(one_device, axis_name="devices"))(*arguments)
    for key, value in expected.items():
        assert sharded[key][0] != sharded[key][1]
        np.testing.assert_allclose(sharded[key].mean(), value, rtol=1e-6)


def test_shard_map_gives_the_same_loss():
    """Its checks ask that what a loop starts with varies over the devices as its results do."""
    outputs, (boxes, mask) = random_outputs(3, 4), random_ground_truth(3)
    expected = jitted_loss(outputs, boxes, mask, SIZES, RNG)
    mesh = Mesh(np.array(jax.devices()[:1]), ("devices",))

    @partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec("devices"), out_specs=PartitionSpec())
    def sharded_loss(outputs, boxes, mask, sizes):
        losses = rpn_loss(CONFIG, outputs, boxes, mask, sizes, RNG, axis_name="devices")
        return jax.lax.pmean(losses, "devices")

    losses = jax.jit(sharded_loss)(outputs, boxes, mask, SIZES)
    for key, value in expected.items():
        np.testing.assert_allclose(losses[key], value, rtol=1e-6)


def test_bfloat16_outputs_give_a_float32_loss():
    outputs, (boxes, mask) = random_outputs(4, 4), random_ground_truth(4)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), outputs)
    losses = jitted_loss(low, boxes, mask, SIZES, RNG)
    upcast = jitted_loss(
        jax.tree.map(lambda x: x.astype(jnp.float32), low), boxes, mask, SIZES, RNG
    )
    for key, value in upcast.items():
        assert losses[key].dtype == jnp.float32
        np.testing.assert_allclose(losses[key], value, rtol=1e-6)


def test_sums_over_many_anchors_stay_exact():
    """A canvas of 512 x 512: 65,472 anchors, whose cross-entropies are summed in float32."""
    shapes = [(128, 128), (64, 64), (32, 32)]
    rng = np.random.default_rng(0)
    logits = [rng.normal(-3, 2, (1, *shape, 3)).astype(np.float32) for shape in shapes]
    outputs = RPNOutputs(
        tuple(map(jnp.asarray, logits)), tuple(jnp.zeros((*x.shape, 4)) for x in logits)
    )
    losses = jitted_loss(
        outputs, np.zeros((1, 1, 4)), np.zeros((1, 1), bool), np.array([[512, 512]]), RNG
    )
    flat = np.concatenate([x.ravel() for x in logits]).astype(np.float64)
    expected = np.logaddexp(0, flat).sum() / (len(flat) + 1)
    np.testing.assert_allclose(losses["loss_rpn_cls"], expected, rtol=2e-6)


def test_wrong_number_of_levels_is_refused():
    outputs, (boxes, mask) = random_outputs(0, 4), random_ground_truth(0)
    with pytest.raises(UserError, match="the network has 3 levels"):
        rpn_loss(Config(), outputs, boxes, mask, SIZES, RNG)


@pytest.mark.usefixtures("no_shape_checks")
def test_arguments_of_different_numbers_of_pictures_are_refused():
    outputs, (boxes, mask) = random_outputs(0, 4), random_ground_truth(0)
    with pytest.raises(UserError, match=r"boxes_xyxy has the shape \(1, .*must be \(B=4, G, 4\)$"):
        rpn_loss(CONFIG, outputs, boxes[:1], mask[:1], SIZES[:1], RNG)


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_reference(name):
    case = load_case(name)
    losses = jax.jit(partial(rpn_loss, case.config))(
        case.outputs, *padded_boxes(case), case.image_sizes, RNG
    )
    np.testing.assert_allclose(losses["loss_rpn_cls"], case.fields["loss_cls"], rtol=1e-5)
    np.testing.assert_allclose(losses["loss_rpn_bbox"], case.fields["loss_bbox"], rtol=1e-5)
