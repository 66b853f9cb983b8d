"""What `make clean` removes."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_clean_leaves_trained_models() -> None:
    said = subprocess.run(
        ["make", "-n", "clean"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    removed = said.split()
    assert "runs" not in removed
    assert "runs/demo" in removed
