"""The head of the second stage: against NumPy, its initial values, and folded norms."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from rpn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    Config,
    ModelConfig,
    RoIHeadConfig,
    RPNHeadConfig,
    with_precision,
)
from rpn_jax.errors import UserError
from rpn_jax.models import RPN, FasterRCNN, build_detector, init_variables, variable_shapes
from rpn_jax.models.folding import fold_norms
from rpn_jax.ops.roi_align import roi_align
from rpn_jax.structures import RoIOutputs, Variables
from tests.oracles.boxes import random_boxes

PYRAMID = Config(
    model=ModelConfig(
        backbone=BackboneConfig(depth=18, num_stages=2),
        neck_channels=16,
        rpn=RPNHeadConfig(channels=16, anchors=AnchorConfig(strides=(4, 8, 16))),
        roi=RoIHeadConfig(num_classes=3, channels=32),
    )
)
C4 = Config(
    model=ModelConfig(
        backbone=BackboneConfig(depth=18, num_stages=3, train_norm=False),
        neck="none",
        rpn=RPNHeadConfig(channels=16, anchors=AnchorConfig(strides=(16,))),
        roi=RoIHeadConfig(num_classes=3, head="layer4"),
    )
)


def roi_outputs(model: nn.Module, variables: Variables, levels: tuple, boxes: Array) -> RoIOutputs:
    return jax.jit(partial(model.apply, method="roi_outputs"))(variables, levels, boxes)


def test_outputs_against_numpy() -> None:
    variables = jax.device_get(init_variables(PYRAMID, seed=1))
    model = build_detector(PYRAMID.model)
    assert isinstance(model, FasterRCNN)
    rng = np.random.default_rng(0)
    levels = tuple(rng.normal(size=(2, n, n, 16)).astype(np.float32) for n in (16, 8, 4))
    boxes = random_boxes(rng, 2, 5, size=64)
    outputs = roi_outputs(model, variables, levels, boxes)

    pool = jax.jit(roi_align, static_argnums=(2, 3))
    pooled = np.asarray(pool(levels[:2], boxes, (4, 8), 7)).reshape(10, -1)
    head = variables["params"]["roi_head"]["bbox_head"]
    for layer in ("0", "1"):
        weights = head["shared_fcs"][layer]
        kernel = weights["kernel"].reshape(-1, 32)
        pooled = np.maximum(pooled @ kernel + weights["bias"], 0)
    logits = pooled @ head["fc_cls"]["kernel"] + head["fc_cls"]["bias"]
    deltas = pooled @ head["fc_reg"]["kernel"] + head["fc_reg"]["bias"]
    np.testing.assert_allclose(outputs.class_logits.reshape(10, 4), logits, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(outputs.deltas.reshape(10, 12), deltas, rtol=1e-4, atol=1e-6)
    assert (outputs.class_logits.shape, outputs.deltas.shape) == ((2, 5, 4), (2, 5, 3, 4))


def test_the_extra_level_is_not_pooled_from() -> None:
    variables = init_variables(PYRAMID)
    model = build_detector(PYRAMID.model)
    levels = tuple(jnp.ones((1, n, n, 16)) for n in (16, 8, 4))
    boxes = jnp.array([[[0.0, 0.0, 4000.0, 4000.0]]])
    outputs = roi_outputs(model, variables, levels, boxes)
    other = roi_outputs(model, variables, (*levels[:2], levels[2] * 9), boxes)
    np.testing.assert_array_equal(outputs.class_logits, other.class_logits)


def test_initial_values_are_those_of_the_reference() -> None:
    config = replace(PYRAMID.model, roi=RoIHeadConfig(num_classes=80, channels=256))
    head = jax.device_get(init_variables(Config(model=config)))["params"]["roi_head"]["bbox_head"]
    first = head["shared_fcs"]["0"]["kernel"]
    assert first.shape == (7, 7, 16, 256)
    limit = np.sqrt(6 / (7 * 7 * 16 + 256))
    assert np.abs(first).max() <= limit
    np.testing.assert_allclose(first.std(), limit / np.sqrt(3), rtol=0.02)
    np.testing.assert_allclose(head["fc_cls"]["kernel"].std(), 0.01, rtol=0.05)
    np.testing.assert_allclose(head["fc_reg"]["kernel"].std(), 0.001, rtol=0.05)
    for layer in (*head["shared_fcs"].values(), head["fc_cls"], head["fc_reg"]):
        assert not layer["bias"].any()


@pytest.mark.parametrize("config", [PYRAMID, C4], ids=["fc", "layer4"])
def test_new_weights_are_those_that_both_stages_use(config: Config) -> None:
    """They are drawn without a call of RoIAlign."""
    model = build_detector(config.model)
    inputs = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 1, 4))
    assert variable_shapes(config) == jax.eval_shape(model.init, jax.random.key(0), *inputs)


@pytest.mark.parametrize("config", [PYRAMID, C4], ids=["fc", "layer4"])
def test_folded_weights_give_the_same_outputs(config: Config) -> None:
    variables = jax.device_get(init_variables(config, seed=2))
    rng = np.random.default_rng(1)
    statistics = jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape), variables["batch_stats"])
    statistics = jax.tree.map(np.float32, statistics)
    variables = {**variables, "batch_stats": statistics}
    images = jnp.asarray(rng.normal(size=(1, 64, 64, 3)), jnp.float32)
    boxes = jnp.asarray(random_boxes(rng, 1, 3, size=64))
    model = build_detector(config.model)
    expected = jax.jit(model.apply)(variables, images, boxes)
    for kernels_ohwi in (False, True):
        folded = fold_norms(model, variables, kernels_ohwi)
        assert "batch_stats" not in folded
        apply = jax.jit(build_detector(config.model, folded=True).apply)
        for got, want in zip(
            jax.tree.leaves(apply(folded, images, boxes)), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_outputs_are_float32_and_close_in_every_precision(precision) -> None:
    variables = init_variables(PYRAMID, seed=3)
    rng = np.random.default_rng(2)
    levels = tuple(jnp.asarray(rng.normal(size=(1, n, n, 16)), jnp.float32) for n in (16, 8, 4))
    boxes = jnp.asarray(random_boxes(rng, 1, 4, size=64))
    exact = roi_outputs(build_detector(PYRAMID.model), variables, levels, boxes)
    config = with_precision(PYRAMID, precision)
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    levels = tuple(x.astype(dtype) for x in levels)
    rounded = roi_outputs(build_detector(config.model), variables, levels, boxes)
    for got, want in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        assert got.dtype == jnp.float32
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        assert error < (0.02 if precision == "bfloat16" else 2e-3)
        if precision == "bfloat16":  # On a CPU, the forms for GPUs do not round to TF32.
            assert error > 0


def test_the_config_decides_between_the_detectors() -> None:
    assert isinstance(build_detector(PYRAMID.model), FasterRCNN)
    rpn = replace(PYRAMID.model, roi=None)
    assert isinstance(build_detector(rpn), RPN)
    with pytest.raises(UserError, match=r"^model\.roi: is None"):
        FasterRCNN(rpn)
    assert "roi_head" not in variable_shapes(Config(model=rpn))["params"]
