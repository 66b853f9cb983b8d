"""Folders of weights: written completely or not at all, and loaded from each kind of folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.config import Config, load_config
from rpn_jax.errors import UserError
from rpn_jax.weights.folders import load_variables, save_variables
from rpn_jax.weights.trees import check_variables
from tests.made_variables import assert_bit_equal, variables_of


def test_saved_weights_and_their_config_load_unchanged(tmp_path: Path) -> None:
    config = load_config("rpn_r101-caffe_fpn_1x_coco")
    folder = tmp_path / "made" / "weights"
    save_variables(folder, config, jax.tree.map(jnp.asarray, variables_of(3)))
    found = load_variables(str(folder))
    assert_bit_equal(found, variables_of(3))
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(found))
    assert load_config(folder / "config.json") == config
    assert [entry.name for entry in folder.parent.iterdir()] == ["weights"]


def test_weights_are_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    save_variables(folder, Config(), variables_of(0))
    with pytest.raises(UserError, match=r"weights .*weights: exists already"):
        save_variables(folder, Config(), variables_of(1))
    assert_bit_equal(load_variables(folder), variables_of(0))


def test_only_whole_variables_and_a_config_are_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^variables: have no 'params'\. Give whole variables"):
        save_variables(tmp_path / "weights", Config(), variables_of(0)["params"])
    with pytest.raises(UserError, match=r"^config: is of type ModelConfig: must be a Config$"):
        save_variables(tmp_path / "weights", Config().model, variables_of(0))
    assert list(tmp_path.iterdir()) == []


def test_parameters_alone_are_not_the_variables_of_a_model() -> None:
    expected = variables_of(0)
    check_variables(expected, expected, "given")
    with pytest.raises(UserError, match=r"^weights given: have no 'params'"):
        check_variables(expected, expected["params"], "given")


def test_interrupted_writing_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(folder: Path, tree: Any) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("rpn_jax.weights.folders.write_item", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_variables(tmp_path / "weights", Config(), variables_of(0))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(checkpointer: Any, folder: Path, args: Any) -> None:
        """Fail as on a full disk, while a thread still writes."""
        folder.mkdir()
        Timer(0.1, lambda: (folder / "late").mkdir(parents=True)).start()
        raise ValueError("RESOURCE_EXHAUSTED: Error\nwriting [os_error_code='28' source='x.cc']")

    monkeypatch.setattr("orbax.checkpoint.Checkpointer.save", save)
    folder = tmp_path / "weights"
    with pytest.raises(UserError) as refusal:
        save_variables(folder, Config(), variables_of(0))
    assert str(refusal.value) == f"weights {folder}: cannot be written (No space left on device)"
    assert list(tmp_path.iterdir()) == []


def test_folders_without_weights_are_errors_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "file.pth").touch()
    expected = {
        "nowhere": "no such folder",
        "file.pth": "no such folder",
        "pictures": "holds no weights. Give",
        "run": "holds no checkpoint yet",
    }
    for name, message in expected.items():
        with pytest.raises(UserError, match=f"weights .*{name}: {message}") as error:
            load_variables(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("unreadable", ["weights", "."])
def test_unreadable_folders_are_errors_of_one_line(
    tmp_path: Path, forbid: Callable[[Path], None], unreadable: str
) -> None:
    save_variables(tmp_path / "weights", Config(), variables_of(0))
    forbid(tmp_path / unreadable)
    message = r"weights .*weights: cannot be read \(Permission denied\)$"
    with pytest.raises(UserError, match=message):
        load_variables(tmp_path / "weights")
    with pytest.raises(UserError, match=message):
        save_variables(tmp_path / "weights", Config(), variables_of(0))


@pytest.mark.parametrize("damage", ["no files", "metadata", "values"])
def test_damaged_weights_are_errors_of_one_line(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "weights"
    # One array only. With several, orbax cancels the other reads when the first one fails, and
    # asyncio reports that later, while another test runs.
    save_variables(folder, Config(), {"params": {"kernel": np.arange(100.0)}})
    files = [path for path in (folder / "variables").rglob("*") if path.is_file()]
    for path in files:
        if damage == "no files":
            path.unlink()
        elif damage == "metadata" and path.name == "_METADATA":
            path.write_text("{")
        elif damage == "values" and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="is damaged and cannot be read") as error:
        load_variables(folder)
    assert "\n" not in str(error.value)


def test_the_error_for_other_weights_names_one_of_each_kind() -> None:
    expected = jax.eval_shape(lambda: variables_of(0))
    check_variables(expected, variables_of(1), "w")
    other = variables_of(0)
    del other["params"]["backbone"]["conv1"]
    del other["params"]["rpn_head"]["rpn_cls"]["kernel"]
    other["params"]["backbone"]["layer9"] = {"0": {"conv1": {"kernel": np.zeros(1)}}}
    other["batch_stats"]["backbone"]["layer1"]["0"]["bn1"]["mean"] = np.zeros(8)
    with pytest.raises(UserError) as error:
        check_variables(expected, other, "runs/x")
    assert str(error.value) == (
        "weights runs/x: do not match the config: "
        "'batch_stats.backbone.layer1.0.bn1.mean' has shape (8,), expected (4,); "
        "'backbone.conv1.kernel' is missing (and 1 more); "
        "'backbone.layer9.0.conv1.kernel' is unexpected"
    )
