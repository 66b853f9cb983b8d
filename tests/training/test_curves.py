"""The curves of a run show what its metrics hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rpn_jax.errors import UserError
from rpn_jax.training.curves import draw_curves


def read_picture(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def write_metrics(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def drawn_curves(folder: Path, rows: list[dict[str, Any]]) -> np.ndarray:
    out = folder / "curves.png"
    draw_curves(write_metrics(folder / "metrics.jsonl", rows), out)
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"step": 1}\n{"st', "line 2 is not JSON"),
        ("[1]\n", "line 1 is no object"),
    ],
)
def test_metrics_that_are_none_are_told_in_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        draw_curves(path, tmp_path / "curves.png")
    with pytest.raises(UserError, match="cannot be read"):
        draw_curves(tmp_path / "missing.jsonl", tmp_path / "curves.png")
    write_metrics(path, [{"step": 1, "loss": 1.0}])
    with pytest.raises(UserError, match="cannot be written"):
        draw_curves(path, tmp_path / "missing" / "curves.png")
