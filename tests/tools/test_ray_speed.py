"""The comparison of Ray with the plain command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import ray_speed
from tools.ray_speed import main


def test_both_commands_run_on_the_same_pictures_and_the_ratio_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    # A picture takes 1 s in the plain command and 0.5 s with Ray. The start takes 3 s and 10 s.
    ran: list[tuple[int, bool]] = []

    def seconds(options: object, pictures: Path, out: Path, flags: list[str]) -> float:
        count = len(list(pictures.iterdir()))
        ran.append((count, "ray" in flags))
        return 10 + count / 2 if "ray" in flags else 3.0 + count

    monkeypatch.setattr(ray_speed, "_seconds", seconds)
    assert main(["c", str(tmp_path), "w", "--copies", "5"]) == 0
    assert ran == [(1, False), (10, False), (1, True), (10, True)]
    said = capsys.readouterr().out
    assert "plain: 10 pictures in 13.0 s" in said
    assert "ray / plain: 0.87 for the whole command, 2.00 without the start" in said
