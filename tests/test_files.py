"""Files that commands read and write: JSON and output paths."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from rpn_jax.errors import UserError
from rpn_jax.files import check_out_file, read_json, write_json


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    content = {"numbers": [1, 0.1 + 0.2], "text": "K\u00e4fer"}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_json_is_utf_8_in_every_locale(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('"K\u00e4fer"'.encode())
    assert read_json(tmp_path / "a.json") == "K\u00e4fer"


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\xff"])
def test_a_file_that_is_not_json_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path}: is not JSON \(.+\)$"):
        read_json(path)


def test_an_unreadable_json_file_is_an_error(
    tmp_path: Path, forbid: Callable[[Path], None]
) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match=rf"^{path}: cannot be read \(No such file"):
        read_json(path)
    path.write_text("{}")
    forbid(path)
    with pytest.raises(UserError, match=rf"^{path}: cannot be read \(Permission denied\)$"):
        read_json(path)


def test_only_the_folder_of_an_output_file_is_created(tmp_path: Path) -> None:
    check_out_file(tmp_path / "deep" / "er" / "out.json")
    assert list(tmp_path.rglob("*")) == [tmp_path / "deep", tmp_path / "deep" / "er"]


def test_an_existing_output_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("old")
    check_out_file(tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == "old"


def test_an_output_path_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    messages = {
        tmp_path: r"is a folder. Choose the path of a file.",
        tmp_path / ("a" * 300): r"cannot be written \(File name too long\)",
        tmp_path
        / "file"
        / "out.json": r"cannot be written \(File exists\). Choose another folder.",
    }
    for path, message in messages.items():
        with pytest.raises(UserError, match=f"{message}$"):
            check_out_file(path)


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        for write in (check_out_file, lambda path: write_json(path, {})):
            with pytest.raises(UserError, match=rf"^{path}: is not a regular file\. Choose"):
                write(path)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(tmp_path.iterdir()) == [link, pipe]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "a.json", tmp_path / "a.json"
    if exists:
        target.write_text("old")
    link.symlink_to("disk/a.json")
    check_out_file(link)
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert read_json(target) == {"a": 1}
    assert list(target.parent.iterdir()) == [target]
