"""The command on a generated case: figures that pass, fail or are absent, and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rpn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    Config,
    ModelConfig,
    RPNHeadConfig,
    save_config,
)
from rpn_jax.errors import UserError
from tools.parity import picture
from tools.parity.__main__ import main
from tools.parity.cases import Case
from tools.parity.network import Ours, run
from tools.parity.network_rows import QUANTITIES, network_rows
from tools.parity.quantities import rows_of
from tools.parity.rows import Bar

CONFIG = Config(
    name="tiny",
    model=ModelConfig(
        backbone=BackboneConfig(depth=18, num_stages=2, frozen_stages=0),
        neck_channels=16,
        rpn=RPNHeadConfig(channels=16, anchors=AnchorConfig(strides=(4, 8, 16), scales=(2.0, 4.0))),
    ),
)
SIZES = np.array([[45, 61], [33, 20], [45, 50]], np.int32)


def inputs() -> dict:
    """Return three pictures of odd sizes on one canvas. The last one has no box."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((3, 3, 64, 96)).astype(np.float32)
    boxes = np.array([[3, 4, 30, 33], [20, 8, 33, 40]], np.float32)
    return {"images": images, "image_sizes": SIZES, "gt_0": boxes, "gt_1": boxes[:1] / 2} | {
        "gt_2": np.zeros((0, 4), np.float32)
    }


def fields_of(ours: Ours) -> dict[str, np.ndarray]:
    """Return this package's results as the fields of a case."""
    fields: dict[str, Any] = {
        "anchors": ours.anchors[::3],
        "anchors_stride": np.int32(3),
        "loss_cls": ours.loss["loss_rpn_cls"],
        "loss_bbox": ours.loss["loss_rpn_bbox"],
        "grad_names": list(ours.gradient_norms),
        "grad_norms": list(ours.gradient_norms.values()),
        "sgd_losses": ours.sgd_losses,
        "sgd_names": list(ours.sgd_moves),
        "sgd_moves": list(ours.sgd_moves.values()),
    }
    fields |= {f"c_mean_{j}": mean for j, mean in enumerate(ours.backbone_means)}
    fields |= {f"feat_mean_{j}": mean for j, mean in enumerate(ours.pyramid_means)}
    for j, (objectness, deltas) in enumerate(zip(ours.objectness, ours.deltas, strict=True)):
        fields[f"cls_{j}"] = objectness.transpose(0, 3, 1, 2)
        fields[f"reg_{j}"] = deltas.reshape(*deltas.shape[:3], -1).transpose(0, 3, 1, 2)
    for i, proposals in enumerate(ours.proposals):
        fields |= {f"proposals_{i}": proposals, f"assigned_{i}": ours.labels[i]}
    return {key: np.array(value) for key, value in fields.items()}


@pytest.fixture(scope="module")
def computed() -> tuple[Case, Ours]:
    """Return a case with all fields, and this package's results for it."""
    exact = replace(CONFIG, rpn_loss=replace(CONFIG.rpn_loss, samples_per_image=0))
    case = Case("odd", exact, 7, {**inputs(), "sgd_losses": np.zeros(4)})
    ours = run(case)
    return replace(case, fields=inputs() | fields_of(ours)), ours


def results(case: Case, ours: Ours | None) -> dict[str, str]:
    return {
        row.quantity: "absent" if row.measured is None else "fail" if row.failed else "pass"
        for row in rows_of(case, QUANTITIES, ours)
    }


def test_three_odd_pictures_pass(computed: tuple[Case, Ours]) -> None:
    assert set(results(*computed).values()) == {"pass"}
    ours = computed[1]
    assert len(ours.labels[0]) == 6 * (16 * 24 + 8 * 12 + 4 * 6)
    assert (ours.labels > 0).any(axis=1).tolist() == [True, True, False]
    assert "backbone.conv1.weight" not in ours.gradient_norms
    assert ours.sgd_losses[3] < ours.sgd_losses[0]


def scaled(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: array * factor


def with_other_label(labels: np.ndarray) -> np.ndarray:
    return np.concatenate([labels[:-1], [1 - labels[-1]]])


@pytest.mark.parametrize(
    ("field", "change", "failing"),
    [
        ("anchors", lambda array: array + 2e-4, {"anchors"}),
        ("anchors", lambda array: array[:-1], {"anchors"}),
        ("c_mean_1", scaled(1.0001), {"backbone outputs"}),
        ("feat_mean_2", scaled(1.0001), {"pyramid outputs"}),
        ("cls_2", scaled(1.0001), {"head outputs"}),
        ("reg_0", scaled(0.9999), {"head outputs"}),
        ("assigned_2", with_other_label, {"matching"}),
        ("assigned_0", lambda array: array[1:], {"matching"}),
        ("loss_bbox", scaled(1.0001), {"loss"}),
        ("loss_cls", scaled(np.nan), {"loss"}),
        ("grad_names", lambda array: np.array(["other", *array[1:]]), {"trained parameters"}),
        ("grad_norms", scaled(1.01), {"gradient norms"}),
        ("sgd_losses", lambda array: array * [1, 1, 1, 1.01], {"SGD losses"}),
        ("sgd_moves", scaled(0.99), {"SGD moves"}),
        ("proposals_1", lambda array: array[::2], {"proposals found"}),
        ("proposals_1", lambda array: array + 0.06, {"proposals found"}),
    ],
)
def test_a_changed_figure_fails_only_its_own_row(
    computed: tuple[Case, Ours], field: str, change: Callable[..., Any], failing: set[str]
) -> None:
    case, ours = computed
    changed = replace(case, fields={**case.fields, field: change(case.fields[field])})
    found = results(changed, ours)
    assert {quantity for quantity, result in found.items() if result == "fail"} == failing


def test_proposals_in_another_order_and_repeated_ones_fail(computed: tuple[Case, Ours]) -> None:
    case, ours = computed
    backwards = replace(ours, proposals=[rows[::-1] for rows in ours.proposals])
    assert results(case, backwards)["proposals out of order"] == "fail"
    repeated = [np.concatenate([rows[:1], rows]) for rows in ours.proposals]
    assert results(case, replace(ours, proposals=repeated))["proposals repeated"] == "fail"


@pytest.mark.parametrize(
    ("field", "absent"),
    [
        ("anchors", {"anchors"}),
        ("c_mean_0", {"backbone outputs"}),
        ("reg_0", {"head outputs"}),
        ("assigned_2", {"matching"}),
        ("gt_2", {"matching", "loss", "gradient norms", "SGD losses", "SGD moves"}),
        ("sgd_moves", {"SGD moves"}),
        (
            "proposals_0",
            {"proposals found", "proposals out of order", "proposals repeated"},
        ),
    ],
)
def test_what_a_case_lacks_is_absent_and_the_rest_passes(
    computed: tuple[Case, Ours], field: str, absent: set[str]
) -> None:
    case, ours = computed
    fields = {key: value for key, value in case.fields.items() if key != field}
    found = results(replace(case, fields=fields), ours)
    assert {quantity for quantity, result in found.items() if result == "absent"} == absent
    assert "fail" not in found.values()


def test_without_images_all_figures_are_absent() -> None:
    rows = network_rows(Case("none", CONFIG, 1, {}))
    assert len(rows) == len(QUANTITIES)
    assert all(row.measured is None and not row.failed for row in rows)


def test_the_command_prints_the_table_and_returns_the_exit_code(
    computed: tuple[Case, Ours], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, _ = computed
    save_config(CONFIG, tmp_path / "tiny.json")
    kept = {k: v for k, v in case.fields.items() if not k.startswith(("sgd_", "proposals_"))}
    np.savez(tmp_path / "odd.npz", **kept)
    words = [str(tmp_path), "--out", str(tmp_path / "rows.json")]
    right = [*words, "--config", "tiny.json", "--seed", "7"]
    assert main(right) == 0
    assert "0 of 8 figures fail" in capsys.readouterr().out
    assert main([*words, "--config", "tiny.json", "--seed", "8"]) == 1
    assert "FAIL" in capsys.readouterr().out
    by_quantity = {row["quantity"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert by_quantity["anchors"]["result"] == "pass"
    assert by_quantity["head outputs"]["result"] == "fail"
    assert by_quantity["SGD moves"] == {
        "case": "odd",
        "quantity": "SGD moves",
        "measured": None,
        "bar": 1e-3,
        "at_least": False,
        "unit": "relative",
        "result": "absent",
        "where": "",
    }


def test_other_precisions_have_the_same_limits(computed: tuple[Case, Ours], tmp_path: Path) -> None:
    case, _ = computed
    save_config(CONFIG, tmp_path / "tiny.json")
    kept = {k: v for k, v in case.fields.items() if not k.startswith(("sgd_", "proposals_"))}
    np.savez(tmp_path / "odd.npz", **kept, config="tiny.json", seed=7)
    out = tmp_path / "rows.json"
    assert main([str(tmp_path), "--precision", "bfloat16", "--out", str(out)]) == 1
    measured = {row["quantity"]: row["measured"] for row in json.loads(out.read_text())}
    assert 1e-4 < measured["head outputs"] < 0.1
    assert measured["anchors"] == measured["matching"] == 0


def test_a_case_of_another_network_is_refused(computed: tuple[Case, Ours]) -> None:
    case, _ = computed
    fields = inputs() | {"feat_mean_0": np.zeros((3, 256), np.float32)}
    with pytest.raises(UserError, match=r"case odd: feat_mean_0 is \[3, 256\], but config tiny"):
        network_rows(replace(case, fields=fields))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["."], "contains no case"),
        (["cases", "--out", "."], ".: is a folder. Choose the path of a file."),
        (["--cses", "a", "."], "unknown flag '--cses'; did you mean '--cases'?"),
        ([".", "--precision", "float64"], "invalid choice 'float64'"),
    ],
)
def test_wrong_flags_get_an_error_message_of_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cases" / "keys").mkdir(parents=True)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_bars() -> None:
    assert Bar(1.0).passes(1.0)
    assert not Bar(1.0).passes(1.5)
    assert not Bar(1.0).passes(float("nan"))
    assert Bar(1.0, at_least=True).passes(1.0)
    assert not Bar(1.0, at_least=True).passes(0.9)
    assert not Bar(1.0, at_least=True).passes(float("nan"))
    assert str(Bar(0.05, "px")) == "<= 0.05 px"


def test_without_a_picture_its_cases_are_named_and_the_command_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "PICTURES", tmp_path / "none")
    np.savez(tmp_path / "image_mine.npz", config="rpn_demo", seed=1, proposals=np.zeros((0, 5)))
    assert main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "0 of 0 figures fail" in said
    assert "not measured, pass --picture: image_mine" in said
