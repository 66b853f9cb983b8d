"""Config, seed and class count of a case, and the error messages where one is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rpn_jax.errors import UserError
from tools.parity.cases import case_names, load_case

R50 = "rpn_r50_fpn_1x_coco"


def write_case(folder: Path, name: str, **fields: Any) -> None:
    np.savez(folder / f"{name}.npz", **fields)


def test_the_list_of_this_repository_is_the_default(tmp_path: Path) -> None:
    write_case(tmp_path, "r50_caffe_c4", images=np.zeros((1, 3, 32, 32)))
    case = load_case(tmp_path, "r50_caffe_c4", None, None, "float32")
    assert (case.config.name, case.seed) == ("rpn_r50-caffe-c4_1x_coco", 5)
    assert case.config.rpn_loss.samples_per_image == 0


def test_flags_override_fields_and_fields_override_the_list(tmp_path: Path) -> None:
    write_case(tmp_path, "mine")
    listed = {"mine": {"config": R50, "seed": 3}}
    (tmp_path / "cases.json").write_text(json.dumps(listed))
    case = load_case(tmp_path, "mine", None, None, "float32")
    assert (case.config.name, case.seed) == (R50, 3)
    write_case(tmp_path, "mine", config="rpn_r101_fpn_1x_coco", seed=np.int64(4))
    case = load_case(tmp_path, "mine", None, None, "float32")
    assert (case.config.name, case.seed) == ("rpn_r101_fpn_1x_coco", 4)
    case = load_case(tmp_path, "mine", "rpn_r18_fpn_gn_small", 5, "float32")
    assert (case.config.name, case.seed) == ("rpn_r18_fpn_gn_small", 5)


def test_a_config_may_be_a_file_of_the_folder(tmp_path: Path) -> None:
    text = """
from rpn_jax.config import load_config, replace
BASE = load_config("rpn_r50_fpn_1x_coco")
model = replace(BASE.model, precision="bfloat16", neck_channels=64)
CONFIG = replace(BASE, name="narrow", model=model)
"""
    (tmp_path / "narrow.py").write_text(text)
    write_case(tmp_path, "mine", config="narrow.py", seed=1)
    config = load_case(tmp_path, "mine", None, None, "float32").config
    assert (config.model.neck_channels, config.model.precision) == (64, "float32")


def test_the_precision_is_the_one_asked_for(tmp_path: Path) -> None:
    write_case(tmp_path, "mine", config=R50, seed=1)
    for precision in ("float32", "tf32", "bfloat16"):
        assert (
            load_case(tmp_path, "mine", None, None, precision).config.model.precision == precision
        )


@pytest.mark.parametrize(
    ("fields", "listed", "message"),
    [
        ({}, None, "case mine: config = None: must be a text. Pass --config"),
        ({"config": R50}, None, "case mine: seed = None: must be a whole number. Pass --seed"),
        ({"config": R50, "seed": 1.5}, None, "case mine: seed = 1.5"),
        ({"config": 7, "seed": 1}, None, "case mine: config = 7"),
        ({"config": "rpn_r50", "seed": 1}, None, "config 'rpn_r50': is no known name"),
        ({}, "[]", "cases.json: must be"),
        ({}, "{", "cases.json: is not JSON"),
        ({}, '{"mine": {"confg": "x"}}', "unknown key 'confg'; did you mean 'config'?"),
    ],
)
def test_a_missing_or_wrong_value_is_named(
    tmp_path: Path, fields: dict[str, Any], listed: str | None, message: str
) -> None:
    write_case(tmp_path, "mine", **fields)
    if listed is not None:
        (tmp_path / "cases.json").write_text(listed)
    with pytest.raises(UserError, match="^[^\n]*$") as error:
        load_case(tmp_path, "mine", None, None, "float32")
    assert message in str(error.value)


def test_files_that_are_not_cases(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(UserError, match=r"text\.npz: is not an archive"):
        load_case(tmp_path, "text", R50, 1, "float32")
    with pytest.raises(UserError, match=r"none\.npz: cannot be read"):
        load_case(tmp_path, "none", R50, 1, "float32")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        case_names(tmp_path / "nowhere")
    assert case_names(tmp_path) == ["text"]


def test_boxes_are_padded_and_a_picture_may_have_none(tmp_path: Path) -> None:
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_case(tmp_path, "mine", images=np.zeros((3, 3, 40, 50)), gt_0=boxes[:0], gt_2=boxes)
    case = load_case(tmp_path, "mine", R50, 1, "float32")
    padded, mask = case.boxes
    assert mask.tolist() == [[False] * 3, [False] * 3, [True] * 3]
    np.testing.assert_array_equal(padded[mask], boxes)
    assert case.image_sizes.tolist() == [[40, 50]] * 3
    assert case.images.shape == (3, 40, 50, 3)


def test_a_two_stage_case_states_its_class_count(tmp_path: Path) -> None:
    write_case(tmp_path, "two", config=R50, seed=np.int64(21), num_classes=np.int64(80))
    assert load_case(tmp_path, "two", None, None, "float32").num_classes == 80
    write_case(tmp_path, "one", config=R50, seed=np.int64(1))
    assert load_case(tmp_path, "one", None, None, "float32").num_classes is None


def test_head_outputs_are_channels_last_and_anchor_major(tmp_path: Path) -> None:
    logits = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    deltas = np.arange(2 * 12 * 4 * 5, dtype=np.float32).reshape(2, 12, 4, 5)
    write_case(tmp_path, "mine", config=R50, seed=1, cls_0=logits, reg_0=deltas)
    outputs = load_case(tmp_path, "mine", None, None, "float32").outputs
    assert outputs.objectness[0][1, 2, 3, 0] == logits[1, 0, 2, 3]
    assert outputs.deltas[0][1, 2, 3, 2, 1] == deltas[1, 2 * 4 + 1, 2, 3]
