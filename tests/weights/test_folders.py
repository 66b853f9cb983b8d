"""Weights are whole or not there, and load from everything that holds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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


def test_weights_and_their_config_survive_a_folder(tmp_path: Path) -> None:
    config = load_config("rpn_r101-caffe_fpn_1x_coco")
    folder = tmp_path / "made" / "weights"
    save_variables(folder, config, jax.tree.map(jnp.asarray, variables_of(3)))
    found = load_variables(str(folder))
    assert_bit_equal(found, variables_of(3))
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(found))
    assert load_config(folder / "config.json") == config
    assert [entry.name for entry in folder.parent.iterdir()] == ["weights"]


def test_weights_are_not_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    save_variables(folder, Config(), variables_of(0))
    with pytest.raises(UserError, match=r"weights .*weights: exists already"):
        save_variables(folder, Config(), variables_of(1))
    assert_bit_equal(load_variables(folder), variables_of(0))


def test_weights_that_break_off_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks_off(folder: Path, tree: Any) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("rpn_jax.weights.folders.write_item", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        save_variables(tmp_path / "weights", Config(), variables_of(0))
    assert list(tmp_path.iterdir()) == []


def test_folders_without_weights_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "file.pth").touch()
    expected = {
        "nowhere": "no such folder",
        "file.pth": "no such folder",
        "pictures": "holds no weights; expected",
        "run": "no checkpoint has been saved there yet",
    }
    for name, message in expected.items():
        with pytest.raises(UserError, match=f"weights .*{name}: {message}") as error:
            load_variables(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("unreadable", ["weights", "."])
def test_unreadable_folders_are_told_in_one_line(
    tmp_path: Path, forbid: Callable[[Path], None], unreadable: str
) -> None:
    save_variables(tmp_path / "weights", Config(), variables_of(0))
    forbid(tmp_path / unreadable)
    told = r"weights .*weights: cannot be read \(Permission denied\)$"
    with pytest.raises(UserError, match=told):
        load_variables(tmp_path / "weights")
    with pytest.raises(UserError, match=told):
        save_variables(tmp_path / "weights", Config(), variables_of(0))


@pytest.mark.parametrize("damage", ["no files", "metadata", "values"])
def test_damaged_weights_are_told_in_one_line(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "weights"
    # One array: of several, orbax drops the reads in flight when the first fails, and asyncio
    # complains of that whenever the threads get to it, in whatever test runs then.
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


def test_the_first_differing_weights_are_named() -> None:
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
        "weights runs/x: are of another model: "
        "batch_stats.backbone.layer1.0.bn1.mean has shape (8,), the config needs (4,); "
        "backbone.conv1.kernel is missing (and 1 more); "
        "backbone.layer9.0.conv1.kernel is unexpected"
    )
