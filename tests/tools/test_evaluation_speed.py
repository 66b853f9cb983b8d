"""The made results at the size of COCO give the figures of pycocotools, on a few pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.evaluation_speed import (
    DETECTIONS,
    PROPOSALS,
    by_pycocotools,
    by_rpn_jax,
    make_dataset,
    make_detections,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("mode", "count"), [("recall", PROPOSALS), ("ap", DETECTIONS)])
def test_both_give_the_same_figures(mode: str, count: int) -> None:
    dataset = make_dataset(3)
    detections = make_detections(dataset, count)
    expected = by_pycocotools(mode, dataset, detections)
    figures = by_rpn_jax(mode, dataset, detections)
    assert len(expected) == (6 if mode == "recall" else 12)
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_the_command_prints_time_memory_and_figures() -> None:
    command = [sys.executable, "-m", "tools.evaluation_speed", "ap", "--pictures", "20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "AP50 0." in done.stdout
    assert "20 pictures" in done.stdout
    assert "peak memory" in done.stdout
