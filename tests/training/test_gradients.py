"""Gradient accumulation: a batch taken in parts gives the gradient of the whole batch."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax import commands
from rpn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    Config,
    ModelConfig,
    RoIHeadConfig,
    RoILossConfig,
    RPNHeadConfig,
    RPNLossConfig,
)
from rpn_jax.devices import devices_for_batch
from rpn_jax.errors import UserError
from rpn_jax.models import init_variables
from rpn_jax.models.means import Mean
from rpn_jax.structures import Batch
from rpn_jax.training.gradients import DEVICE_AXIS, batch_gradient, check_parts
from rpn_jax.training.objectives import loss_function_of
from tests.oracles.boxes import random_boxes

PICTURES, SIDE = 8, 32
RPN_CONFIG = Config(
    model=ModelConfig(
        backbone=BackboneConfig(depth=18, num_stages=1, norm="group", frozen_stages=-1),
        neck="none",
        rpn=RPNHeadConfig(channels=8, anchors=AnchorConfig(strides=(4,), scales=(2.0, 4.0))),
    ),
    # Fewer are sampled than there are, so the result depends on the keys of the pictures. A picture
    # without boxes has no positives, so the parts have different numbers of samples.
    rpn_loss=RPNLossConfig(samples_per_image=200, positive_iou=0.4, positive_fraction=0.02),
)
FASTER_CONFIG = replace(
    RPN_CONFIG,
    model=replace(RPN_CONFIG.model, roi=RoIHeadConfig(num_classes=3, channels=16, pooled_size=3)),
    roi_loss=RoILossConfig(nms_pre=60, max_proposals=40, positive_iou=0.4, samples_per_image=16),
)


def random_batch(seed):
    """Pictures with 0 to 3 boxes, of sizes from 12 pixels on: small ones have few anchors."""
    rng = np.random.default_rng(seed)
    mask = np.arange(3) < np.array([3, 1, 0, 2, 0, 0, 3, 1])[:, None]
    boxes = np.where(mask[..., None], random_boxes(rng, PICTURES, 3, size=SIDE), 0)
    sides = [32, 12, 32, 20, 12, 15, 32, 32]
    return Batch(
        images=rng.integers(0, 256, (PICTURES, SIDE, SIDE, 3), np.uint8),
        image_sizes=np.stack([sides, sides], axis=1).astype(np.int32),
        scale_factors=np.ones((PICTURES, 2), np.float32),
        boxes_xyxy=boxes.astype(np.float32),
        labels=np.where(mask, rng.integers(0, 3, mask.shape), 0).astype(np.int32),
        box_mask=mask,
        indices=np.arange(PICTURES, dtype=np.int32),
    )


@cache
def compiled_gradient(config, parts, devices):
    """The gradient and the scalars as a program, with the devices as the mapped axis of a vmap."""

    def of_device(variables, batch):
        rng = jax.random.fold_in(jax.random.key(5), jax.lax.axis_index(DEVICE_AXIS))
        gradient, scalars, _ = batch_gradient(
            loss_function_of(config), variables, batch, rng, parts
        )
        return gradient, scalars

    mapped = jax.vmap(of_device, in_axes=(None, 0), out_axes=None, axis_name=DEVICE_AXIS)
    return jax.jit(mapped).lower(init_variables(config), batch_on(devices)).compile()


def batch_on(devices):
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), random_batch(seed=2))


@pytest.mark.parametrize(
    ("config", "parts", "devices"),
    [(RPN_CONFIG, 8, 1), (FASTER_CONFIG, 2, 2)],
    ids=["rpn in 8", "faster in 2 on 2 devices"],
)
def test_parts_give_the_gradient_of_the_whole_batch(config, parts, devices):
    arguments = init_variables(config), batch_on(devices)
    expected, expected_scalars = compiled_gradient(config, 1, devices)(*arguments)
    gradient, scalars = compiled_gradient(config, parts, devices)(*arguments)
    assert scalars.keys() == expected_scalars.keys()
    for name, value in expected_scalars.items():
        assert value > 0, name
        np.testing.assert_allclose(scalars[name], value, rtol=1e-5, err_msg=name)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(expected), jax.tree.leaves(gradient), strict=True
    ):
        assert np.linalg.norm(b - a) <= 2e-5 * np.linalg.norm(a), path


def test_more_parts_need_less_memory():
    in_parts, whole = (
        compiled_gradient(RPN_CONFIG, parts, 1).memory_analysis().temp_size_in_bytes
        for parts in (8, 1)
    )
    assert in_parts < 0.5 * whole


def level_loss(variables, batch, rng, first):
    """A weight's distance from the grey levels, a mean over pictures with a level above 0.

    The statistics count the calls.
    """
    levels = batch.images[:, 0, 0, 0].astype(jnp.float32)
    counted = levels > 0
    distances = jnp.where(counted, (variables["params"]["w"] - levels) ** 2, 0.0)
    places = first + jnp.arange(len(levels))
    means = {
        "loss_level": Mean(jnp.sum(distances), jnp.sum(counted).astype(jnp.float32)),
        "place": Mean(jnp.sum(places * levels), jnp.sum(levels)),
    }
    return means, variables | {"batch_stats": {"calls": variables["batch_stats"]["calls"] + 1}}


def level_batch(levels):
    batch = random_batch(seed=0)
    images = np.broadcast_to(
        np.array(levels, np.uint8)[:, None, None, None], (len(levels), 4, 4, 3)
    )
    return replace(batch, images=images)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_a_part_counts_by_its_samples_and_knows_its_place(parts):
    """Levels 4, 8 and 6 in places 0, 1 and 6. The mean of the parts' means would be another."""
    variables = {"params": {"w": jnp.float32(0)}, "batch_stats": {"calls": jnp.int32(0)}}
    batch = jax.tree.map(lambda x: x[None], level_batch([4, 8, 0, 0, 0, 0, 6, 0]))

    def of_device(batch):
        return batch_gradient(level_loss, variables, batch, jax.random.key(0), parts)

    gradient, scalars, updated = jax.vmap(of_device, out_axes=None, axis_name=DEVICE_AXIS)(batch)
    assert scalars["loss"] == pytest.approx((16 + 64 + 36) / 3)
    assert gradient["w"] == pytest.approx(-2 * (4 + 8 + 6) / 3)
    assert scalars["place"] == pytest.approx((8 + 36) / 18)
    assert updated["batch_stats"]["calls"] == parts


def test_parts_must_divide_the_pictures_of_a_device():
    check_parts(3, 3 * len(devices_for_batch(3)))
    with pytest.raises(UserError, match=r"^train\.gradient_parts = 3: must divide \d, the number"):
        check_parts(3, 4)


def test_a_run_in_parts_that_do_not_divide_leaves_no_folder(tiny_config, tmp_path):
    config = replace(tiny_config, train=replace(tiny_config.train, gradient_parts=5))
    with pytest.raises(UserError, match=r"^train\.gradient_parts = 5: must divide"):
        commands.train(config, tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()
