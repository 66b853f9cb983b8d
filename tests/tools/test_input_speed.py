"""Speed of the steps of loading, plain and packed."""

from __future__ import annotations

import json
from pathlib import Path

from rpn_jax.config import Config, save_config
from tools.input_speed import main


def test_every_step_is_measured_for_both_datasets(tiny_config: Config, tmp_path: Path) -> None:
    save_config(tiny_config, tmp_path / "c.json")
    out = tmp_path / "rows.json"
    words = [str(tmp_path / "c.json"), "--pictures", "3", "--rounds", "2", "--out", str(out)]
    assert main(words) == 0
    rows = json.loads(out.read_text())
    assert [row["step"] for row in rows] == ["read", "decode", "resize", "flip and copy", "all"]
    for row in rows:
        assert min(row["plain_per_s"], row["packed_per_s"], row["packed_over_plain"]) > 0
