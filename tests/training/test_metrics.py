"""The metrics file is read line by line, and damage is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from rpn_jax.errors import UserError
from rpn_jax.training.metrics import METRICS_FILE, metrics_line, read_metrics


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "AR@100": None}]
    path = tmp_path / METRICS_FILE
    path.write_text("".join(map(metrics_line, rows)))
    assert read_metrics(path) == rows


def test_an_unfinished_last_line_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    path.write_text('{"step": 1}\n{"step": 2}')
    assert read_metrics(path) == [{"step": 1}]


@pytest.mark.parametrize(
    "line", ["gibberish", "[2]", '{"epoch": 2}', "\0\0", '{"step": "x"}', "\xff"]
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / METRICS_FILE
    path.write_text(f'{{"step": 2}}\n{line}\n{{"step": 6}}\n', encoding="latin-1")
    complaint = rf"^metrics {path}: line 2: is not a JSON object with a 'step'. Remove this line\.$"
    with pytest.raises(UserError, match=complaint):
        read_metrics(path)
