"""The RPN cases of the reference, for tests of single functions."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np

from rpn_jax.ops import anchor_validity, grid_anchors
from tests.golden_files import FOLDER
from tools.parity import cases
from tools.parity.cases import Case

CASES = ("r50_pytorch", "r50_caffe", "x101_32x4d", "r101_pytorch", "r50_caffe_c4")


@cache
def load_case(name: str) -> Case:
    return cases.load_case(FOLDER, name, None, None, "float32")


def case_anchors(case: Case) -> np.ndarray:
    """Return the anchors that `grid_anchors` makes for a case, f32[K, 4]."""
    level_shapes = case.outputs.level_shapes
    return np.concatenate(
        jax.jit(lambda: grid_anchors(level_shapes, case.config.model.rpn.anchors))()
    )


def case_validity(case: Case) -> np.ndarray:
    """Return what `anchor_validity` computes for a case, bool[B, K]."""
    level_shapes, anchors = case.outputs.level_shapes, case.config.model.rpn.anchors
    return np.asarray(jax.jit(lambda: anchor_validity(level_shapes, anchors, case.image_sizes))())


def padded_boxes(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes of a case and their mask, with two more rows of padding than needed."""
    boxes, mask = case.boxes
    return np.pad(boxes, ((0, 0), (0, 2), (0, 0))), np.pad(mask, ((0, 0), (0, 2)))
