"""Files of commands: what cannot be written is told before the work."""

from __future__ import annotations

from pathlib import Path

import pytest

from rpn_jax.errors import UserError
from rpn_jax.files import check_out_file


def test_the_folder_of_a_file_is_made_and_nothing_else(tmp_path: Path) -> None:
    check_out_file(tmp_path / "deep" / "er" / "out.json")
    assert list(tmp_path.rglob("*")) == [tmp_path / "deep", tmp_path / "deep" / "er"]


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("old")
    check_out_file(tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == "old"


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = {
        tmp_path: "is a folder, where a file is to be written; name a file",
        tmp_path / ("a" * 300): r"cannot be written \(File name too long\)",
        tmp_path / "file" / "out.json": r"cannot be written \(File exists\); choose another one",
    }
    for path, told in refused.items():
        with pytest.raises(UserError, match=f"{told}$"):
            check_out_file(path)
