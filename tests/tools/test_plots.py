"""Plots of results from another machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.plots import main


def test_results_without_failed_rows_are_plotted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {"median_ms": 2.0, "p10_ms": 1.0, "p90_ms": 3.0}
    rows = [
        {"axis": "devices", "value": 1, **times},
        {"axis": "devices", "value": 2, "failed": "x"},
    ]
    results = tmp_path / "benchmark.json"
    results.write_text(json.dumps({"sections": {"growth": {"note": "", "rows": rows}}}))
    assert main([str(results), str(tmp_path / "plots")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'plots' / 'growth.png'}\n"
    assert (tmp_path / "plots" / "growth.png").stat().st_size > 1000


def test_a_missing_file_gets_an_error_message_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "benchmark.json"), str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "benchmark.json: cannot be read" in error
    assert error.count("\n") == 1
