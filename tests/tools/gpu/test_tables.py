"""Figures in the docs, and goals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rpn_jax.errors import UserError
from tools.gpu.goals import GOALS, judge, rows
from tools.gpu.tables import TABLES, fill, main

ROOT = Path(__file__).resolve().parents[3]


def ours(batch: int, stage: str, milliseconds: float, rate: float) -> dict[str, Any]:
    return {
        "program": "ours",
        "precision": "bfloat16",
        "batch": batch,
        "stage": stage,
        "median_ms": milliseconds,
        "pictures_per_s": rate,
    }


BENCHMARK = [
    ours(1, "end to end", 1.2, 833.0),
    ours(16, "end to end", 20.0, 800.0),
    ours(16, "post-processing", 1.0, 16000.0),
    {
        "program": "torchvision eager float32",
        "batch": 1,
        "stage": "end to end",
        "times_ours_bfloat16": 6.0,
    },
]
DETECTOR = [ours(1, "end to end", 2.0, 500.0), ours(16, "training step", 50.0, 320.0)]


def written(folder: Path, small: bool) -> Path:
    environment = {"rows": [{"what": "device", "value": "a GPU"}]}
    content = {
        "options": {"small": small},
        "sections": {
            "environment": environment,
            "benchmark": {"rows": BENCHMARK},
            "detector": {"rows": DETECTOR},
        },
    }
    path = folder / "results.json"
    path.write_text(json.dumps(content))
    return path


def test_goals_are_marked_from_the_figures(tmp_path: Path) -> None:
    written(tmp_path, small=False)
    results: dict[str, list[str]] = {"RPN": [], "Faster R-CNN": []}
    for row in rows(tmp_path):
        results[row["model"]].append(row["result"])
    # Batch 1, batch 16, training, eager, compiled, and the RPN's share of post-processing.
    missing = "not measured"
    assert results["RPN"] == ["met", "not met", missing, "met", missing, "stretch met"]
    assert results["Faster R-CNN"] == ["met", missing, "stretch met", missing, missing]


def test_small_sizes_meet_no_goal(tmp_path: Path) -> None:
    written(tmp_path, small=True)
    assert {row["result"] for row in rows(tmp_path)} == {"not measured"}


@pytest.mark.parametrize(
    ("value", "result"),
    [(1.61, "not met"), (1.6, "met"), (1.11, "met"), (1.1, "stretch met"), (None, "not measured")],
)
def test_goal_for_a_time_is_met_at_its_value(value: float | None, result: str) -> None:
    assert judge(GOALS[0], value) == result


def test_goal_for_a_rate_is_met_at_its_value() -> None:
    figures = (849.0, 850.0, 1050.0)
    assert [judge(GOALS[1], value) for value in figures] == ["not met", "met", "stretch met"]


def test_tables_replace_what_is_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- gpu:inference -->\nold\n<!-- /gpu:inference -->\nb\n")
    arguments = [str(written(tmp_path, small=False)), str(page)]
    assert main(arguments) == 0
    first = page.read_text()
    assert first.startswith("a\n<!-- gpu:inference -->\n| stage ")
    assert "old" not in first
    assert first.endswith("|\n<!-- /gpu:inference -->\nb\n")
    assert "torchvision" not in first
    assert main(arguments) == 0
    assert page.read_text() == first


def test_a_section_without_rows_is_not_measured() -> None:
    page = "<!-- gpu:configs -->\n<!-- /gpu:configs -->"
    assert fill(page, {}, "page") == "<!-- gpu:configs -->\nnot measured\n<!-- /gpu:configs -->"


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- gpu:goal -->", r"page: unknown marker 'gpu:goal'"),
        ("<!-- gpu:goals -->", r"page: needs the lines '<!-- gpu:goals -->'"),
    ],
)
def test_wrong_markers_are_refused(page: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fill(page, {}, "page")


def test_the_pages_have_every_table_of_the_measured_figures() -> None:
    sections = json.loads((ROOT / "docs" / "gpu" / "h200.json").read_text())["sections"]
    pages = [ROOT / "docs" / "performance.md", ROOT / "docs" / "parity.md"]
    texts = [path.read_text() for path in pages]
    for name in TABLES:
        assert sum(text.count(f"<!-- gpu:{name} -->") for text in texts) == 1
    for path, text in zip(pages, texts, strict=True):
        assert fill(text, sections, path.name) == text
