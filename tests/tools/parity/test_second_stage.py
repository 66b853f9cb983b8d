"""Figures of the reference for Faster R-CNN, and the comparison of detections."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.config import load_config, replace
from rpn_jax.errors import UserError
from rpn_jax.ops import grid_anchors
from rpn_jax.structures import RoIOutputs, RPNOutputs
from tests.golden_files import FOLDER
from tools.parity.__main__ import main
from tools.parity.cases import load_case
from tools.parity.compare import count_found
from tools.parity.detection_ties import settle_detection_ties
from tools.parity.folder import ap_row, keys_row
from tools.parity.quantities import rows_of
from tools.parity.second_stage import TwoStages
from tools.parity.second_stage_rows import QUANTITIES, second_stage_rows

# As users measure parity.
pytestmark = pytest.mark.usefixtures("all_optimizations", "all_groups_of_roi_align")

TWO_STAGE = FOLDER / "two_stage"
CASES = ("frcnn_r50_caffe", "frcnn_c4")
FORWARD = (
    "pyramid outputs",
    "RoI levels",
    "RoI features",
    "second stage outputs",
    "detections of given boxes",
    "matching of given boxes",
)
"""Quantities of the forward pass, which one program computes. Others compile for a minute more.

`python -m tools.parity tests/golden/two_stage` measures all quantities of all cases.
"""


@cache
def ours(case: str) -> TwoStages:
    return TwoStages(load_case(TWO_STAGE, case, None, None, "float32"))


@pytest.mark.parametrize("quantity", FORWARD)
@pytest.mark.parametrize("case", CASES)
def test_forward_pass(case: str, quantity: str) -> None:
    chosen = [each for each in QUANTITIES if each.name == quantity]
    (row,) = rows_of(ours(case).case, chosen, ours(case))
    assert (row.measured is None) == (case == "frcnn_c4" and quantity == "RoI levels")
    assert not row.failed, row


def test_average_precision() -> None:
    row = ap_row(TWO_STAGE)
    assert row.measured is not None
    assert not row.failed, row


def test_parameters_of_the_configs() -> None:
    row = keys_row(TWO_STAGE)
    assert row.measured is not None
    assert not row.failed, row
    assert row.measured.detail == "12 configs"


def test_an_unknown_config_is_named_and_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "other.npz", config="other-rcnn", seed=np.int64(1))
    assert main([str(tmp_path)]) == 1
    assert "not measured, no such config: other (other-rcnn)" in capsys.readouterr().out


def test_classes_need_a_config_with_a_second_stage(tmp_path: Path) -> None:
    images = np.zeros((1, 3, 32, 32), np.float32)
    fields = {"config": "rpn_r50_fpn_1x_coco", "seed": np.int64(1), "num_classes": np.int64(3)}
    np.savez(tmp_path / "mine.npz", images=images, **fields)
    with pytest.raises(UserError, match=r"rpn_r50_fpn_1x_coco has no second stage"):
        second_stage_rows(load_case(tmp_path, "mine", None, None, "float32"))


def test_detections_are_found_with_the_same_class_box_and_score() -> None:
    reference = np.array([[0, 0, 10, 10, 0.9, 1], [0, 0, 10, 10, 0.9, 2], [5, 5, 9, 9, 0.5, 1]])
    assert count_found(reference[::-1].copy(), reference) == 3
    for column, step, found in ((0, 0.04, 3), (3, 0.06, 2), (4, 5e-5, 3), (4, 2e-4, 2), (5, 1, 2)):
        moved = reference.copy()
        moved[2, column] += step
        assert count_found(moved, reference) == found, (column, step)
    repeated = reference[[0, 0, 0]]
    assert count_found(repeated, reference) == 1
    assert count_found(np.zeros((0, 6)), reference) == 0


def test_the_anchor_of_a_detection_comes_first_among_equal_scores() -> None:
    config = load_config("rpn_r50_fpn_1x_coco")
    anchors = replace(config.model.rpn.anchors, strides=(16,))
    config = replace(
        config, model=replace(config.model, rpn=replace(config.model.rpn, anchors=anchors))
    )
    logits = jnp.full((1, 2, 2, 3), 40.0).at[0, 0, 0, 0].set(-1.0)
    logits = logits.at[0, 1, 1].add(jnp.arange(3.0))  # Their sigmoids are 1 as well.
    outputs = RPNOutputs((logits,), (jnp.zeros((1, 2, 2, 3, 4)),))
    size = jnp.array([[200, 200]])
    boxes = np.clip(np.concatenate(grid_anchors([(2, 2)], anchors)), 0, 200)

    def classify(candidates: jnp.ndarray) -> RoIOutputs:
        count = candidates.shape[1]
        probabilities = jnp.array([0.25, 0.5, 0.25])
        return RoIOutputs(
            jnp.tile(jnp.log(probabilities), (1, count, 1)), jnp.zeros((1, count, 2, 4))
        )

    reference = np.array([[*boxes[4], 0.5, 1], [*boxes[7], 0.5, 0]], np.float32)
    settled = settle_detection_ties(config, outputs, size, reference, classify)
    flat = np.asarray(settled.objectness[0]).reshape(-1)
    assert flat[4] == 42.0, "the box, the score and the class of the reference"
    assert flat[7] == 40.0, "another class has this score"
    assert flat[0] == -1.0
    assert set(np.delete(flat, [0, 4]).tolist()) == {40.0}
