"""The loss functions equal the public losses, computed from outputs at all cells."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
from rpn_jax.models import RPN, FasterRCNN, init_variables, variable_shapes
from rpn_jax.models.means import Mean
from rpn_jax.models.roi.loss import roi_loss
from rpn_jax.models.roi.targets import roi_targets
from rpn_jax.models.rpn.loss import rpn_loss
from rpn_jax.models.rpn.proposals import propose
from rpn_jax.ops import normalize_images
from rpn_jax.structures import Batch
from rpn_jax.training.gradients import DEVICE_AXIS, batch_gradient
from rpn_jax.training.objectives import faster_rcnn_loss_function, rpn_loss_function
from tests.oracles.boxes import random_boxes

PICTURES = 3
BACKBONE = BackboneConfig(depth=18, num_stages=2, frozen_stages=0)
MODELS = {
    "fpn": ModelConfig(
        backbone=BACKBONE,
        neck_channels=16,
        rpn=RPNHeadConfig(channels=8, anchors=AnchorConfig(strides=(4, 8, 16), scales=(4.0,))),
    ),
    "c4": ModelConfig(
        backbone=BackboneConfig(depth=18, num_stages=1, frozen_stages=0),
        neck="none",
        rpn=RPNHeadConfig(channels=8, anchors=AnchorConfig(strides=(4,), scales=(2.0, 4.0))),
    ),
}


def random_batch(seed):
    """Pictures of 3, 1 and no boxes."""
    rng = np.random.default_rng(seed)
    mask = np.arange(3) < np.array([3, 1, 0])[:, None]
    boxes = random_boxes(rng, PICTURES, 3, size=64)
    return Batch(
        images=jnp.asarray(rng.integers(0, 256, (PICTURES, 64, 96, 3), np.uint8)),
        image_sizes=jnp.array([[64, 96], [50, 90], [33, 64]], jnp.int32),
        scale_factors=jnp.ones((PICTURES, 2), jnp.float32),
        boxes_xyxy=jnp.asarray(np.where(mask[..., None], boxes, 0), jnp.float32),
        labels=jnp.zeros((PICTURES, 3), jnp.int32),
        box_mask=jnp.asarray(mask),
        indices=jnp.arange(PICTURES, dtype=jnp.int32),
    )


def terms_and_gradients(loss_function, variables, batch):
    """The scalars, and the gradient of the loss, on one device of the mapped axis."""

    def of_device(variables, batch):
        rng = jax.random.key(7)
        gradient, scalars, _ = batch_gradient(loss_function, variables, batch, rng, parts=1)
        return scalars, gradient

    mapped = jax.vmap(of_device, in_axes=(None, 0), out_axes=None, axis_name=DEVICE_AXIS)
    return jax.jit(mapped)(variables, jax.tree.map(lambda x: x[None], batch))


def one_sample(losses):
    """Losses that are divided already, as means over one sample."""
    return {name: Mean(value, jnp.float32(1.0)) for name, value in losses.items()}


def everywhere(config):
    """The same loss by the public functions, of outputs at all cells."""
    model = RPN(config.model, axis_name=DEVICE_AXIS)

    def loss_function(variables, batch, rng, first):
        images = normalize_images(batch.images, batch.image_sizes, config.pixels)
        outputs = model.apply(variables, images)
        boxes = batch.boxes_xyxy, batch.box_mask, batch.image_sizes
        return one_sample(rpn_loss(config, outputs, *boxes, rng)), variables

    return loss_function


@pytest.mark.parametrize(("model", "samples"), [("c4", 0), ("fpn", 32), ("c4", 10_000), ("c4", 1)])
def test_equal_to_the_loss_of_all_outputs(model, samples):
    """Every anchor, some (several of a cell among them), more than there are, and one."""
    loss = RPNLossConfig(samples_per_image=samples, positive_iou=0.4, negative_iou=0.3)
    config = replace(Config(model=MODELS[model]), rpn_loss=loss)
    variables = init_variables(config, seed=samples)
    batch = random_batch(seed=samples)
    expected_terms, expected = terms_and_gradients(everywhere(config), variables, batch)
    terms, gradients = terms_and_gradients(rpn_loss_function(config), variables, batch)
    for name, value in expected_terms.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-5)
    moved = 0
    for (path, a), b in zip(
        jax.tree.leaves_with_path(expected), jax.tree.leaves(gradients), strict=True
    ):
        size = np.linalg.norm(a)
        assert np.linalg.norm(b - a) <= 1e-5 * size, path
        moved += int(size > 0)
    assert moved >= 8


def test_the_head_works_at_the_sampled_cells_alone():
    """Its FLOPs, as a wide one adds them, are for 4 cells of a picture's 504."""

    def flops(samples, head_channels):
        rpn = replace(MODELS["fpn"].rpn, channels=head_channels)
        model = replace(MODELS["fpn"], rpn=rpn)
        config = Config(model=model, rpn_loss=RPNLossConfig(samples_per_image=samples))
        arguments = variable_shapes(config), random_batch(0), jax.random.key(0), 0
        one_device = jax.vmap(
            rpn_loss_function(config), in_axes=None, axis_name=DEVICE_AXIS, axis_size=1
        )
        return jax.jit(one_device).lower(*arguments).cost_analysis()["flops"]

    everywhere, sampled = (flops(samples, 1024) - flops(samples, 8) for samples in (0, 4))
    assert 4 / 504 < sampled / everywhere < 5 / 504


FASTER = replace(
    Config(model=replace(MODELS["c4"], roi=RoIHeadConfig(num_classes=3, channels=16))),
    rpn_loss=RPNLossConfig(samples_per_image=32, positive_iou=0.4, negative_iou=0.3),
    roi_loss=RoILossConfig(nms_pre=60, max_proposals=40, positive_iou=0.4, samples_per_image=16),
)


def both_stages(config):
    """The joint loss by the public functions, one after the other."""
    model = FasterRCNN(config.model, axis_name=DEVICE_AXIS)
    settings = replace(config.rpn_proposals, nms_pre=60, max_proposals=40)

    def loss_function(variables, batch, rng, first):
        rpn_rng, roi_rng = jax.random.split(rng)
        images = normalize_images(batch.images, batch.image_sizes, config.pixels)
        levels = model.apply(variables, images, method="features")
        outputs = model.apply(variables, levels, method="rpn_outputs")
        truth = batch.boxes_xyxy, batch.box_mask
        terms = rpn_loss(config, outputs, *truth, batch.image_sizes, rpn_rng)
        proposals = propose(
            replace(config, rpn_proposals=settings),
            jax.lax.stop_gradient(outputs),
            batch.image_sizes,
        )
        targets = roi_targets(
            config, proposals.boxes, proposals.valid, truth[0], batch.labels, truth[1], roi_rng
        )
        roi = model.apply(variables, levels, targets.boxes_xyxy, method="roi_outputs")
        return one_sample(terms | roi_loss(roi, targets)), variables

    return loss_function


def test_the_joint_loss_equals_both_stages_one_after_the_other():
    variables = init_variables(FASTER, seed=1)
    batch = random_batch(seed=1)
    labels = jnp.where(batch.box_mask, jnp.array([2, 0, 1]), 0).astype(jnp.int32)
    batch = replace(batch, labels=labels)
    expected_terms, expected = terms_and_gradients(both_stages(FASTER), variables, batch)
    terms, gradients = terms_and_gradients(faster_rcnn_loss_function(FASTER), variables, batch)
    losses = {name for name in terms if name.startswith("loss")}
    assert losses == {"loss", "loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"}
    assert 0 < terms["positive_anchors"] < 1
    assert 0 < terms["positive_boxes"] < 1
    for name, value in expected_terms.items():
        assert value > 0
        np.testing.assert_allclose(terms[name], value, rtol=1e-5)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(expected), jax.tree.leaves(gradients), strict=True
    ):
        assert np.linalg.norm(b - a) <= 1e-5 * np.linalg.norm(a), path
