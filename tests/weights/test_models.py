"""Whole models from files of PyTorch: converted once, and kept in the cache folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rpn_jax.config import Config, load_config
from rpn_jax.errors import UserError
from rpn_jax.models import variable_shapes
from rpn_jax.structures import Variables
from rpn_jax.weights import models
from rpn_jax.weights.folders import load_variables, save_variables
from rpn_jax.weights.torch import to_torch


def constant_variables(config: Config) -> Variables:
    """Return variables that need no computation: each array is full of its position."""
    leaves, structure = jax.tree.flatten(variable_shapes(config))
    arrays = [np.full(leaf.shape, number, np.float32) for number, leaf in enumerate(leaves, 1)]
    return jax.tree.unflatten(structure, arrays)


@pytest.fixture
def torch_file(tmp_path: Path) -> Callable[[Config], Path]:
    """A function that writes `constant_variables` as a PyTorch file."""
    pytest.importorskip("torch")

    def write(config: Config) -> Path:
        save_variables(tmp_path / "source", config, constant_variables(config))
        to_torch(tmp_path / "source", tmp_path / "file.pth")
        return tmp_path / "file.pth"

    return write


def test_a_file_is_converted_once_for_a_config(
    tiny_config: Config,
    torch_file: Callable[[Config], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = torch_file(tiny_config)
    config, variables = models.load_matching_weights(tiny_config, file)
    assert config == tiny_config
    jax.tree.map(np.testing.assert_array_equal, variables, constant_variables(tiny_config))
    assert capsys.readouterr().out.startswith(f"converting {file} into ")
    monkeypatch.setattr(models, "read_converted", None)  # It is not read again.
    folder = models.weights_folder(str(file), tiny_config)
    assert capsys.readouterr().out == ""
    jax.tree.map(np.testing.assert_array_equal, load_variables(folder), variables)


def test_the_config_of_a_file_is_detected(torch_file: Callable[[Config], Path]) -> None:
    demo = load_config("rpn_demo")
    config, variables = models.load_model(torch_file(demo))
    assert config == demo
    jax.tree.map(np.testing.assert_array_equal, variables, constant_variables(demo))


def test_weights_of_a_backbone_are_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "resnet.pth"
    file.touch()
    converted = SimpleNamespace(report=SimpleNamespace(kind="backbone"))
    monkeypatch.setattr(models, "read_converted", lambda source, config: converted)
    with pytest.raises(UserError, match=r"holds only a backbone\. Train a detector from it with"):
        models.load_model(file)


def test_a_source_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: no such file or folder"):
        models.load_model(tmp_path / "none")
    with pytest.raises(UserError, match="weights 'mmdetection://rpn': unknown name"):
        models.load_model("mmdetection://rpn")
