"""Every figure of the reference, with the limits that `tools.parity` prints."""

from __future__ import annotations

import filecmp
import json
from functools import cache

import pytest

from rpn_jax.config import config_names
from rpn_jax.files import read_json
from tests.golden_files import FOLDER, ORIGINALS, PICTURE
from tools.parity import network_rows, picture
from tools.parity.cases import CASES_FILE, case_names, load_case
from tools.parity.folder import COUNTER, different_keys, keys_row, recall_row
from tools.parity.rows import Row

# As users measure parity.
pytestmark = pytest.mark.usefixtures("all_optimizations", "all_groups_of_roi_align")

CASES = ("r50_pytorch", "r50_caffe", "r50_caffe_c4", "r101_pytorch", "x101_32x4d")
PICTURES = ("image_r50_pytorch", "image_r50_caffe")


@cache
def figures_of_network(case: str) -> dict[str, Row]:
    rows = network_rows.network_rows(load_case(FOLDER, case, None, None, "float32"))
    return {row.quantity: row for row in rows}


@cache
def figures_of_picture(case: str) -> dict[str, Row]:
    rows = picture.picture_rows(load_case(FOLDER, case, None, None, "float32"), PICTURE)
    return {row.quantity: row for row in rows}


@pytest.mark.parametrize("quantity", [quantity.name for quantity in network_rows.QUANTITIES])
@pytest.mark.parametrize("case", CASES)
def test_network(case: str, quantity: str) -> None:
    row = figures_of_network(case)[quantity]
    assert row.measured is not None
    assert not row.failed, row


@pytest.mark.parametrize("quantity", [quantity.name for quantity in picture.QUANTITIES])
@pytest.mark.parametrize("case", PICTURES)
def test_picture(case: str, quantity: str) -> None:
    row = figures_of_picture(case)[quantity]
    assert row.measured is not None
    assert not row.failed, row


def test_parameters_of_the_configs() -> None:
    row = keys_row(FOLDER)
    assert row.measured is not None
    assert not row.failed, row
    assert row.measured.detail == "11 configs"


def test_recall() -> None:
    row = recall_row(FOLDER)
    assert row.measured is not None
    assert not row.failed, row


def test_every_case_is_in_the_list() -> None:
    assert set(case_names(FOLDER)) == {*CASES, *PICTURES}
    two_stage = "image_frcnn_r50"  # The other cases of two stages state their config themselves.
    assert set(read_json(FOLDER / CASES_FILE)) == {*CASES, *PICTURES, two_stage}


@pytest.mark.skipif(
    not ORIGINALS.is_dir(), reason="the originals of the copies are not beside the checkout"
)
def test_the_copies_equal_the_originals() -> None:
    files = [path for path in FOLDER.rglob("*.*") if path.suffix in (".npz", ".json")]
    copies = [path for path in files if path.name != CASES_FILE]
    assert copies
    for path in copies:
        assert filecmp.cmp(path, ORIGINALS / path.relative_to(FOLDER), shallow=False), path


def test_missing_extra_and_misshapen_keys_are_named() -> None:
    name = "rpn_r50_fpn_1x_coco"
    keys = json.loads((FOLDER / "keys" / f"{name}.json").read_text())
    assert name in config_names()
    assert different_keys(name, keys) == []
    del keys["backbone.conv1.weight"]
    keys["neck.more.weight"] = [1]
    keys["rpn_head.rpn_cls.bias"] = [4]
    keys[f"backbone.other{COUNTER}"] = []
    assert different_keys(name, keys) == [
        "backbone.conv1.weight",
        "neck.more.weight",
        "rpn_head.rpn_cls.bias",
    ]
