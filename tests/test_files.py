"""JSON files: what was written is read, and what is wrong is one line that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rpn_jax.errors import UserError
from rpn_jax.files import read_json, write_json


def test_what_was_written_is_read(tmp_path: Path) -> None:
    content = {"numbers": [1, 0.1 + 0.2], "text": "K\u00e4fer"}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_file_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('"K\u00e4fer"'.encode())
    assert read_json(tmp_path / "a.json") == "K\u00e4fer"


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\xff"])
def test_what_is_not_json_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path}: is not JSON \(.+\)$"):
        read_json(path)


def test_what_cannot_be_read_is_told(tmp_path: Path, forbid: Callable[[Path], None]) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match=rf"^{path}: cannot be read \(No such file"):
        read_json(path)
    path.write_text("{}")
    forbid(path)
    with pytest.raises(UserError, match=rf"^{path}: cannot be read \(Permission denied\)$"):
        read_json(path)
