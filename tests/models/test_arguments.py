"""Arguments of functions around the networks: shapes must fit, and settings of JAX may differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rpn_jax
from rpn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    Config,
    ModelConfig,
    PixelConfig,
    RoIHeadConfig,
    RPNHeadConfig,
)
from rpn_jax.errors import UserError
from rpn_jax.models.roi.loss import class_accuracy
from rpn_jax.models.roi.targets import RoITargets
from rpn_jax.ops import (
    assign_anchors,
    clip_boxes,
    nms,
    nms_per_class,
    nms_per_level,
    normalize_images,
    resize_bilinear,
    roi_align,
)

CONFIG = Config(
    model=ModelConfig(
        backbone=BackboneConfig(depth=18, num_stages=1),
        neck="none",
        rpn=RPNHeadConfig(anchors=AnchorConfig(strides=(4,))),
        roi=RoIHeadConfig(num_classes=5),
    )
)
RNG = jax.random.key(0)


def zeros(*shape: int) -> jax.Array:
    return jnp.zeros(shape, jnp.float32)


def mask(*shape: int) -> jax.Array:
    return jnp.ones(shape, bool)


def rpn(anchors: int = 3, columns: int = 8) -> rpn_jax.RPNOutputs:
    return rpn_jax.RPNOutputs((zeros(2, 8, 8, anchors),), (zeros(2, 8, columns, anchors, 4),))


def rpn_loss(boxes: jax.Array, box_mask: jax.Array, sizes: jax.Array) -> Any:
    return rpn_jax.rpn_loss(CONFIG, rpn(), boxes, box_mask, sizes, RNG)


def detect(boxes: jax.Array, box_mask: jax.Array, *sizes: jax.Array) -> Any:
    outputs = rpn_jax.RoIOutputs(zeros(2, 7, 6), zeros(2, 7, 5, 4))
    return rpn_jax.detect(CONFIG, outputs, boxes, box_mask, *sizes)


def roi_targets(proposal_mask: jax.Array, labels: jax.Array) -> Any:
    arrays = zeros(2, 7, 4), proposal_mask, zeros(2, 3, 4), labels, mask(2, 3)
    return rpn_jax.roi_targets(CONFIG, *arrays, RNG)


def roi_case(samples: int) -> tuple[rpn_jax.RoIOutputs, RoITargets]:
    labels = jnp.zeros((2, samples), jnp.int32)
    targets = RoITargets(zeros(2, samples, 4), mask(2, samples), labels, zeros(2, samples, 4))
    return rpn_jax.RoIOutputs(zeros(2, 7, 6), zeros(2, 7, 5, 4)), targets


def match(anchors: int, valid: int, boxes: int) -> Any:
    arrays = zeros(anchors, 4), mask(valid), zeros(3, 4), mask(boxes)
    return assign_anchors(*arrays, 0.7, 0.3, 0.3)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (
            lambda: rpn_jax.propose(CONFIG, rpn(), zeros(1, 2)),
            "propose: image_sizes has the shape (1, 2). It must be (B=2, 2)",
        ),
        (
            lambda: rpn_jax.propose(CONFIG, rpn(), zeros(2, 1)),
            "propose: image_sizes has the shape (2, 1). It must be (B=2, 2)",
        ),
        (
            lambda: rpn_jax.propose(CONFIG, rpn(), zeros(2, 2), zeros(1, 2)),
            "propose: scale_factors has the shape (1, 2). It must be (B=2, 2)",
        ),
        (
            lambda: rpn_jax.propose(CONFIG, rpn(anchors=6), zeros(2, 2)),
            "propose: outputs.objectness[0] has the shape (2, 8, 8, 6). It must be (B, H0, W0, ",
        ),
        (
            lambda: rpn_jax.propose(CONFIG, rpn(columns=4), zeros(2, 2)),
            "propose: outputs.deltas[0] has the shape (2, 8, 4, 3, 4). It must be (B=2, H0=8, W0=8",
        ),
        (
            lambda: rpn_loss(zeros(2, 3, 4), mask(2, 4), zeros(2, 2)),
            "rpn_loss: box_mask has the shape (2, 4). It must be (B=2, G=3)",
        ),
        (
            lambda: rpn_loss(zeros(2, 3, 4), mask(2, 3), zeros(2)),
            "rpn_loss: image_sizes has the shape (2,). It must be (B=2, 2)",
        ),
        (
            lambda: detect(zeros(2, 6, 4), mask(2, 6), zeros(2, 2)),
            "detect: boxes_xyxy has the shape (2, 6, 4). It must be (B=2, N=7, 4)",
        ),
        (
            lambda: detect(zeros(2, 7, 4), mask(2, 7), zeros(1, 2)),
            "detect: image_sizes has the shape (1, 2). It must be (B=2, 2)",
        ),
        (
            lambda: detect(zeros(2, 7, 4), mask(2, 7), zeros(2, 2), zeros(1, 2)),
            "detect: scale_factors has the shape (1, 2). It must be (B=2, 2)",
        ),
        (
            lambda: roi_targets(mask(2, 8), zeros(2, 3)),
            "roi_targets: proposal_mask has the shape (2, 8). It must be (B=2, N=7)",
        ),
        (
            lambda: roi_targets(mask(2, 7), zeros(1, 3)),
            "roi_targets: labels has the shape (1, 3). It must be (B=2, G=3)",
        ),
        (
            lambda: rpn_jax.roi_loss(*roi_case(6)),
            "roi_loss: targets.labels has the shape (2, 6). It must be (B=2, S=7)",
        ),
        (
            lambda: match(3, 2, 3),
            "assign_anchors: valid has the shape (2,). It must be (K=3)",
        ),
        (
            lambda: match(3, 3, 2),
            "assign_anchors: box_mask has the shape (2,). It must be (G=3)",
        ),
        (
            lambda: normalize_images(zeros(2, 8, 8, 3), zeros(1, 2), PixelConfig()),
            "normalize_images: image_sizes has the shape (1, 2). It must be (B=2, 2)",
        ),
        (
            lambda: nms(zeros(5, 4), zeros(4), mask(5), 0.5),
            "nms: boxes_xyxy has the shape (5, 4). It must be (axis0=4, 4)",
        ),
        (
            lambda: nms_per_level(zeros(2, 5, 4), zeros(2, 5), mask(2, 1), 0.5, 3),
            "nms_per_level: valid has the shape (2, 1). It must be (axis0=2, axis1=5)",
        ),
        (
            lambda: nms_per_class(zeros(5, 1, 4), zeros(5, 2), mask(5, 2), 0.5, 3),
            "nms_per_class: boxes_xyxy has the shape (5, 1, 4). It must be (axis0=5, axis1=2, 4)",
        ),
        (
            lambda: rpn_jax.RPN(CONFIG.model).init(RNG, zeros(64, 64, 3)),
            "network: images has the shape (64, 64, 3). It must be (B, H, W, 3)",
        ),
    ],
)
def test_the_argument_is_named(call: Callable[[], Any], wanted: str) -> None:
    with pytest.raises(UserError) as refusal:
        jax.eval_shape(call)
    assert str(refusal.value).startswith(wanted)


SIZES = np.array([[32, 32], [20, 30]], np.int32)
LABELS = np.zeros((2, 3), np.int32)
CALLS: dict[str, Callable[[], Any]] = {
    "propose": lambda: rpn_jax.propose(CONFIG, rpn(), SIZES, np.ones((2, 2))),
    "rpn_loss": lambda: rpn_loss(zeros(2, 3, 4), mask(2, 3), SIZES),
    "detect": lambda: detect(zeros(2, 7, 4), mask(2, 7), SIZES, np.ones((2, 2))),
    "roi_targets": lambda: roi_targets(mask(2, 7), LABELS),
    "roi_loss": lambda: rpn_jax.roi_loss(*roi_case(7)),
    "class_accuracy": lambda: class_accuracy(*roi_case(7)),
    "roi_align": lambda: roi_align((zeros(2, 8, 8, 3),), zeros(2, 7, 4), (4,), 7),
    "clip_boxes": lambda: clip_boxes(np.zeros((2, 7, 4)), SIZES),
    "resize_bilinear": lambda: resize_bilinear(
        np.zeros((2, 32, 32, 3), np.uint8), SIZES, SIZES, np.zeros(2, bool), (32, 32)
    ),
}
KINDS = {jnp.float32, jnp.int32, jnp.uint8, jnp.bool_}


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.usefixtures("x64", "no_shape_checks")
def test_the_dtypes_do_not_depend_on_64_bit_types(name: str) -> None:
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(CALLS[name]))}
    assert dtypes <= {jnp.dtype(kind) for kind in KINDS}


@pytest.mark.parametrize("name", CALLS)
def test_strict_type_promotion_is_allowed(name: str) -> None:
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(CALLS[name])
