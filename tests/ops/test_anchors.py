"""Anchors and which of them exist."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from rpn_jax.config import AnchorConfig
from rpn_jax.errors import UserError
from rpn_jax.ops import anchor_validity, base_anchors, grid_anchors, level_validity
from tests.oracles import detection
from tests.oracles.golden import CASES, case_anchors, case_validity, load_case


def test_square_anchor_by_hand():
    np.testing.assert_array_equal(base_anchors(4, (8.0,), (1.0,)), [[-16, -16, 16, 16]])


@pytest.mark.parametrize("stride", [4, 16, 64])
@pytest.mark.parametrize("scales", [(8.0,), (2.0, 4.0, 8.0, 16.0, 32.0)])
def test_base_anchors_follow_the_definition(stride, scales):
    ratios = (0.5, 1.0, 2.0)
    anchors = base_anchors(stride, scales, ratios)
    assert anchors.dtype == np.float32
    np.testing.assert_allclose(anchors, detection.base_anchors(stride, scales, ratios), rtol=3e-7)


def test_order_is_row_column_ratio_scale():
    config = AnchorConfig(strides=(4, 8), scales=(2.0, 3.0))
    shapes = [(3, 5), (2, 3)]
    levels = jax.jit(lambda: grid_anchors(shapes, config))()
    for level, shape, stride in zip(levels, shapes, config.strides, strict=True):
        expected = detection.grid_anchors(shape, stride, config.scales, config.ratios)
        np.testing.assert_allclose(level, expected, rtol=1e-6, atol=1e-5)


def test_validity_against_a_loop():
    config = AnchorConfig()
    canvas = (160, 224)
    shapes = [tuple(math.ceil(side / stride) for side in canvas) for stride in config.strides]
    sizes = np.array([[160, 224], [1, 1], [97, 223], [96, 64], [129, 33]], np.int32)
    levels = jax.jit(lambda sizes: level_validity(shapes, config, sizes))(sizes)
    for picture, (height, width) in enumerate(sizes):
        height, width = 32 * math.ceil(height / 32), 32 * math.ceil(width / 32)
        for level, (rows, columns), stride in zip(levels, shapes, config.strides, strict=True):
            expected = [
                row * stride < height and column * stride < width
                for row in range(rows)
                for column in range(columns)
                for _ in range(config.per_cell)
            ]
            np.testing.assert_array_equal(level[picture], expected)
    np.testing.assert_array_equal(
        anchor_validity(shapes, config, sizes), np.concatenate(levels, axis=1)
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64])
def test_validity_does_not_depend_on_the_type_of_sizes(dtype):
    config, shapes = AnchorConfig(strides=(4,)), [(40, 56)]
    sizes = np.array([[160, 224], [97, 223], [1, 1]])
    np.testing.assert_array_equal(
        anchor_validity(shapes, config, sizes.astype(dtype)),
        anchor_validity(shapes, config, sizes.astype(np.int32)),
    )


def test_wrong_number_of_levels_is_refused():
    with pytest.raises(UserError, match="the network has 2 levels"):
        grid_anchors([(4, 4), (2, 2)], AnchorConfig())
    with pytest.raises(UserError, match="the network has 2 levels"):
        anchor_validity([(4, 4), (2, 2)], AnchorConfig(), np.array([[16, 16]]))


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_reference(name):
    case = load_case(name)
    anchors = case_anchors(case)
    assert len(anchors) == case.fields["num_anchors"]
    np.testing.assert_array_equal(
        anchors[:: int(case.fields["anchors_stride"])], case.fields["anchors"]
    )
    for picture, exists in enumerate(case_validity(case)):
        np.testing.assert_array_equal(exists, case.fields[f"assigned_{picture}"] != -2)
