"""Progress of long work: some lines in a log, a bar on a terminal."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from rpn_jax import console as progress
from rpn_jax.console import picture_progress


def test_a_log_gets_a_line_at_most_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 4.0, 12.0, 20.0, 24.0])
    clock = SimpleNamespace(perf_counter=lambda: next(seconds))
    monkeypatch.setattr(progress, "time", clock)
    log = io.StringIO()
    with picture_progress(Console(file=log, width=20), "proposing", 5000) as advance:
        for pictures in (50, 70, 40, 80):
            advance(pictures)
    assert log.getvalue() == (
        "proposing 120/5000 pictures, 10.0/s, 0:08:08 left\n"
        "proposing 240/5000 pictures, 10.0/s, 0:07:56 left\n"
    )


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
