"""Progress of long work: some lines in a log, a bar on a terminal."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from rpn_jax import console as progress
from rpn_jax.console import picture_progress


def lines_at(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> list[str]:
    """Return the lines after batches of 50, 70, 40 and 80 pictures, at the given times."""
    times = iter([0.0, *seconds])
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    log = io.StringIO()
    with picture_progress(Console(file=log, width=20), "proposing", 5000) as advance:
        for pictures in (50, 70, 40, 80):
            advance(pictures)
    return log.getvalue().splitlines()


def test_a_log_gets_a_line_at_most_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines_at(monkeypatch, 4.0, 11.0, 18.0, 24.0) == [
        "proposing 160/5000 pictures, 7.9/s, 0:10:16 left"
    ]


def test_the_rate_leaves_out_a_first_batch_that_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines_at(monkeypatch, 90.0, 100.0, 105.0, 110.0) == [
        "proposing 50/5000 pictures",
        "proposing 120/5000 pictures, 7.0/s, 0:11:37 left",
        "proposing 240/5000 pictures, 9.5/s, 0:08:21 left",
    ]


def test_short_work_prints_no_line() -> None:
    log = io.StringIO()
    with picture_progress(Console(file=log), "drawing", 2) as advance:
        advance(2)
    assert log.getvalue() == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    with picture_progress(console, "drawing", 8) as advance:
        advance(8)
    assert "drawing" in screen.getvalue()
    assert "8/8" in screen.getvalue()
