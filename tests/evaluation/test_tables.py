"""Tables of figures: all values at their place, readable in 80 columns."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console
from rich.table import Table

from rpn_jax.evaluation.average_precision import evaluate_detections
from rpn_jax.evaluation.recall import evaluate, first_stage_figures, with_first_stage
from rpn_jax.evaluation.tables import (
    DETECTION_MEANINGS,
    class_table,
    detection_line,
    detection_table,
    voc_table,
)
from rpn_jax.evaluation.voc import voc_average_precision
from rpn_jax.inference.results import PictureProposals
from tests.evaluation.cases import box, dataset, detections_of

TRUTH = dataset(box(1, 0), box(2, 100, label=1), classes=3)
FOUND = [detections_of(1, [[0, 0, 50, 50]], [0.9], [0])]


def lines_of(table: Table) -> list[str]:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    return lines


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("│")[1:-1]]


def test_the_table_of_a_detector_has_all_its_figures() -> None:
    proposals = [PictureProposals(each.image_id, each.boxes_xyxy, each.scores) for each in FOUND]
    recall = evaluate(TRUTH.pictures, proposals)
    figures = with_first_stage(evaluate_detections(TRUTH, FOUND), recall)
    assert first_stage_figures(figures) == pytest.approx(recall, nan_ok=True)
    rows = [cells(line) for line in lines_of(detection_table(figures))]
    for name, meaning in DETECTION_MEANINGS.items():
        value = "-" if math.isnan(figures[name]) else f"{figures[name]:.3f}"
        assert [name, meaning, value] in rows
    for row in (["class 0", "1.000"], ["class 1", "0.000"], ["class 2", "-"]):
        assert row in rows
    assert ["AR@1000", "1000 best", "0.500", "0.500"] in rows
    assert detection_line(figures) == "AP 0.500, AP50 0.500, AP75 0.500"


def test_the_table_without_a_first_stage_has_no_recall_of_proposals() -> None:
    lines = lines_of(detection_table(evaluate_detections(TRUTH, FOUND)))
    assert not any("proposal" in line for line in lines)


def test_the_table_of_a_detector_shows_vocs_figures_below_cocos() -> None:
    figures = evaluate_detections(TRUTH, FOUND)
    figures |= voc_average_precision(TRUTH, FOUND, inclusive=True)
    lines = lines_of(detection_table(figures))
    titles = [line.strip() for line in lines if line.strip().startswith("Average precision")]
    assert titles[1] == "Average precision (AP) of the detections, by Pascal VOC's rule"


def test_80_classes_are_best_first_down_three_columns() -> None:
    figures = {f"baseball gl{number:02}": number / 100 for number in range(79)} | {"none": math.nan}
    rows = [cells(line) for line in lines_of(class_table(figures)) if "0." in line]
    assert len(rows) == 27
    assert all(len(row) == 6 for row in rows)
    down = [row[column] for column in (0, 2, 4) for row in rows]
    expected = [f"baseball gl{number:02}" for number in range(78, -1, -1)]
    assert [name for name in down if name] == [*expected, "none"]
    assert rows[0][:2] == ["baseball gl78", "0.780"]


def test_names_of_classes_are_no_markup() -> None:
    assert any("[red] cell" in line for line in lines_of(class_table({"[red] cell": 0.5})))


def test_the_voc_table_has_both_methods_and_each_class() -> None:
    rows = [
        cells(line)
        for line in lines_of(voc_table(voc_average_precision(TRUTH, FOUND, inclusive=True)))
    ]
    assert ["voc_AP50_area", "area under the curve, as since VOC 2010", "0.500"] in rows
    assert rows.count(["class 0", "1.000"]) == 2
    assert rows.count(["class 2", "-"]) == 2
