"""Generated inputs are reproducible, have the right shapes, and are hard for NMS."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.benchmark.inputs import (
    chained_boxes,
    equal_boxes,
    make_batch,
    make_boxes,
    make_outputs,
    make_pictures,
    output_shapes,
)
from rpn_jax.config import Config, load_config
from rpn_jax.models import RPN, variable_shapes
from rpn_jax.models.rpn.proposals import candidates, propose
from rpn_jax.ops import box_iou


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
    _, _, exists = jax.jit(partial(candidates, config))(outputs, sizes)
    unlimited = replace(config, rpn_proposals=replace(config.rpn_proposals, max_proposals=10_000))
    kept = int(jax.jit(partial(propose, unlimited))(outputs, sizes).valid.sum())
    assert jax.jit(partial(propose, config))(outputs, sizes).valid.all()
    assert 1000 < kept < 0.8 * int(exists.sum())


def test_chained_boxes_overlap_only_their_neighbours() -> None:
    boxes = np.asarray(chained_boxes(5))
    iou = np.asarray(box_iou(boxes, boxes))
    assert (np.diagonal(iou, 1) > 0.7).all()
    assert (np.diagonal(iou, 2) < 0.7).all()


def test_equal_boxes_are_equal() -> None:
    assert np.unique(np.asarray(equal_boxes(7)), axis=0).shape == (1, 4)
