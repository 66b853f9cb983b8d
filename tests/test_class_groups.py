"""`evaluate` reports the classes trained on and the others from one run over the pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rpn_jax import commands
from rpn_jax.config import Config, RoIHeadConfig, load_config
from rpn_jax.data.model_classes import with_classes
from rpn_jax.evaluation.average_precision import evaluate_detections
from rpn_jax.evaluation.recall import evaluate as evaluate_recall
from rpn_jax.inference.results import PictureProposals
from rpn_jax.training import tasks
from tests.evaluation.cases import box, dataset, detections_of

TRUTH = dataset(box(1, 0), box(1, 100, label=1), box(2, 200, label=1), classes=3)
"""One box of class 0 and two of class 1. Class 2 has none."""
SEEN = dataset(box(1, 0), classes=3)
UNSEEN = dataset(box(1, 100, label=1), box(2, 200, label=1), classes=3)
PROPOSALS = [
    PictureProposals(each.image_id, each.boxes_xyxy, each.scores)
    for each in (
        detections_of(1, [[0, 0, 50, 50], [300, 0, 350, 50]], [0.9, 0.8], [0, 0]),
        detections_of(2, [[200, 0, 250, 40]], [0.7], [0]),
    )
]
DETECTIONS = [detections_of(1, [[0, 0, 50, 50], [100, 0, 150, 40]], [0.9, 0.8], [0, 1])]


@pytest.fixture
def evaluate(monkeypatch, tmp_path, capsys):
    """Return (figures, what was written, what was printed) of `commands.evaluate`."""

    def run(config: Config, *train_classes: str):
        config = replace(config, data=replace(config.data, train_classes=train_classes))
        config = with_classes(config, TRUTH, "test")
        monkeypatch.setattr(commands, "open_eval_data", lambda data: TRUTH)
        monkeypatch.setattr(commands, "load_matching_weights", lambda config, _: (config, {}))
        both = [(DETECTIONS[0], PROPOSALS[0])]
        found = PROPOSALS if config.model.roi is None else both
        monkeypatch.setattr(tasks, "run_with_progress", lambda *arguments: found)
        out: Path = tmp_path / "figures.json"
        figures = commands.evaluate(config, "w", out, exact_padding=False)
        return figures, json.loads(out.read_text()), capsys.readouterr().out

    return run


def finite(figures: dict[str, float]) -> dict[str, float | None]:
    return {name: value if value == value else None for name, value in figures.items()}


def test_an_rpn_has_the_recall_of_each_group(evaluate):
    figures, written, printed = evaluate(load_config("rpn_demo"), "class 0")
    assert figures == pytest.approx(evaluate_recall(TRUTH.pictures, PROPOSALS), nan_ok=True)
    expected = {
        "seen": finite(evaluate_recall(SEEN.pictures, PROPOSALS)),
        "unseen": finite(evaluate_recall(UNSEEN.pictures, PROPOSALS)),
    }
    assert written["groups"] == expected
    assert (expected["seen"]["AR@100"], expected["unseen"]["AR@100"]) == (1.0, pytest.approx(0.35))
    (row,) = [line for line in printed.splitlines() if "AR@100 " in line and "1.000" in line]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["AR@100", "0.567", "1.000", "0.350"]


def test_a_detector_has_the_ap_of_each_group(evaluate):
    base = load_config("rpn_demo")
    config = replace(base, model=replace(base.model, roi=RoIHeadConfig()))
    _, written, printed = evaluate(config, "class 0", "class 2")
    for name, truth in (("seen", SEEN), ("unseen", UNSEEN)):
        expected = finite(evaluate_detections(truth, DETECTIONS))
        assert {key: written["groups"][name][key] for key in expected} == expected
    assert "rpn_AR@1000" in printed
    assert written["groups"]["seen"]["AP"] == pytest.approx(1.0)


def test_a_group_without_boxes_has_no_figures(evaluate):
    _, written, printed = evaluate(load_config("rpn_demo"), "class 0", "class 1")
    assert written["groups"]["unseen"] == {}
    assert "unseen" in printed


def test_without_train_classes_there_are_no_groups(evaluate):
    _, written, printed = evaluate(load_config("rpn_demo"))
    assert "groups" not in written
    assert "unseen" not in printed
