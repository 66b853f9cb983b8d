"""Generated inputs are reproducible, have the right shapes, and are hard for NMS."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.benchmark.inputs import (
    chained_boxes,
    equal_boxes,
    make_batch,
    make_boxes,
    make_features,
    make_outputs,
    make_pictures,
    make_roi_outputs,
    object_boxes,
    output_shapes,
)
from rpn_jax.config import Config, load_config
from rpn_jax.models import RPN, variable_shapes
from rpn_jax.models.roi import DELTA_STDS
from rpn_jax.models.rpn.proposals import candidates, propose
from rpn_jax.ops import box_iou, decode_boxes
from rpn_jax.structures import RPNOutputs


def test_equal_seeds_give_equal_pictures() -> None:
    first, again, other = (make_pictures(2, (64, 96), seed) for seed in (3, 3, 4))
    assert first.shape == (2, 64, 96, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("canvas", [(64, 64), (800, 1344), (32, 320)])
def test_boxes_are_inside_the_picture(canvas: tuple[int, int]) -> None:
    boxes = make_boxes(200, canvas, seed=0)
    height, width = canvas
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= np.array([width, height]) + 1e-3).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_batch_fills_its_canvas() -> None:
    batch = make_batch(2, (64, 96), boxes=3, seed=0)
    assert batch.images.shape == (2, 64, 96, 3)
    assert batch.images.dtype == jnp.uint8
    assert batch.image_sizes.tolist() == [[64, 96]] * 2
    assert batch.boxes_xyxy.shape == (2, 3, 4)
    assert batch.box_mask.all()
    assert (batch.boxes_xyxy[0] != batch.boxes_xyxy[1]).any()


def test_generated_outputs_have_the_shapes_of_the_network_s(tiny_config: Config) -> None:
    made = make_outputs(tiny_config, 2, (64, 64), seed=0)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    real = jax.eval_shape(RPN(tiny_config.model).apply, variable_shapes(tiny_config), images)
    shapes = output_shapes(tiny_config, 2, (64, 64))
    for kind in ("objectness", "deltas"):
        levels = zip(getattr(made, kind), getattr(real, kind), getattr(shapes, kind), strict=True)
        for one, other, shape in levels:
            assert one.shape == other.shape == shape.shape
            assert one.dtype == other.dtype == jnp.float32


def test_nms_of_generated_outputs_removes_many_boxes_and_keeps_enough() -> None:
    config = load_config("rpn_r50_fpn_1x_coco")
    canvas = (320, 448)
    outputs = make_outputs(config, 1, canvas, seed=0)
    sizes = jnp.array([canvas], jnp.int32)
    unlimited = replace(config, rpn_proposals=replace(config.rpn_proposals, max_proposals=10_000))

    @jax.jit
    def counts(outputs: RPNOutputs, sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, _, exists = candidates(config, outputs, sizes)
        return exists.sum(), propose(unlimited, outputs, sizes).valid.sum()

    present, kept = map(int, counts(outputs, sizes))
    assert config.rpn_proposals.max_proposals < kept < 0.8 * present


def test_generated_outputs_of_the_second_stage_find_the_objects() -> None:
    objects = object_boxes(2, (320, 448), seed=0)
    rng = np.random.default_rng(0)
    boxes = np.concatenate([objects + rng.normal(0, 2, objects.shape), np.zeros((2, 5, 4))], axis=1)
    outputs = make_roi_outputs(80, jnp.asarray(boxes, jnp.float32), objects, seed=0)
    assert outputs.class_logits.shape == (2, len(objects[0]) + 5, 81)
    best = np.asarray(outputs.class_logits).argmax(axis=-1)
    assert (best[:, :-5] == np.arange(len(objects[0]))).mean() > 0.9
    assert (best[:, -5:] == 80).all()
    deltas = np.asarray(outputs.deltas[:, :, 7]) * np.array(DELTA_STDS)
    assert np.isfinite(deltas).all()
    decoded = np.asarray(decode_boxes(jnp.asarray(boxes), jnp.asarray(deltas)))[:, :-5]
    sides = np.asarray(objects)[..., 2:] - np.asarray(objects)[..., :2]
    offsets = np.abs(decoded - objects) / np.tile(sides, 2)
    assert np.median(offsets) < 0.05


def test_features_have_the_shapes_of_the_levels(pyramid_config: Config) -> None:
    levels = make_features(pyramid_config, 2, (64, 96), seed=0)
    assert [level.shape for level in levels] == [(2, 16, 24, 32), (2, 8, 12, 32), (2, 4, 6, 32)]
    assert np.std(levels[0]) == pytest.approx(1, abs=0.05)


def test_chained_boxes_overlap_only_their_neighbours() -> None:
    boxes = np.asarray(chained_boxes(5))
    iou = np.asarray(box_iou(boxes, boxes))
    assert (np.diagonal(iou, 1) > 0.7).all()
    assert (np.diagonal(iou, 2) < 0.7).all()


def test_equal_boxes_are_equal() -> None:
    assert np.unique(np.asarray(equal_boxes(7)), axis=0).shape == (1, 4)
