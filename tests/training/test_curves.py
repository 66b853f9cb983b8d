"""Learning curves show the figures of the metrics file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rpn_jax.errors import UserError
from rpn_jax.training.curves import draw_curves

PANELS = {
    "loss": ("loss", "loss_rpn_cls", "loss_rpn_bbox"),
    "learning rate": ("learning_rate",),
    "recall": ("AR@100", "AR@300", "AR@1000"),
}


def read_picture(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def write_metrics(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def drawn_curves(folder: Path, rows: list[dict[str, Any]]) -> np.ndarray:
    out = folder / "curves.png"
    draw_curves(write_metrics(folder / "metrics.jsonl", rows), PANELS, out)
    return read_picture(out)


def test_curves_show_loss_learning_rate_and_recall(tmp_path: Path) -> None:
    training = [
        {"step": step, "epoch": 0, "loss": 1 / step, "loss_rpn_cls": 0.5 / step,
         "loss_rpn_bbox": 0.5 / step, "learning_rate": 0.01}
        for step in range(1, 50)
    ]  # fmt: skip
    evaluation = [
        {"step": step, "epoch": 1, "AR@100": step / 100, "AR@300": None, "AR@1000": 0.5}
        for step in (20, 40)
    ]
    blue = (0x00, 0x72, 0xB2)
    for rows, shown in ((training, (True, True, False)), (training + evaluation, (True,) * 3)):
        whole = drawn_curves(tmp_path, rows)
        panels = np.array_split(whole, 3, axis=1)
        assert tuple((panel == blue).all(axis=-1).any() for panel in panels) == shown


def test_files_that_cannot_be_used_are_reported_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match="cannot be read"):
        draw_curves(path, PANELS, tmp_path / "curves.png")
    path.write_text('{"st')
    with pytest.raises(UserError, match="no line to draw"):
        draw_curves(path, PANELS, tmp_path / "curves.png")
    write_metrics(path, [{"step": 1, "loss": 1.0}])
    for out in (tmp_path / "missing" / "curves.png", tmp_path / "curves.unknown"):
        with pytest.raises(UserError, match="cannot be written"):
            draw_curves(path, PANELS, out)
