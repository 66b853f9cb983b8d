"""What a person can get wrong: each gives one clear line and exit code 2, before the long work."""

import io
import json
import os
import shutil
import sys

import cv2
import jax
import numpy as np
import pytest

from rpn_jax import cli
from rpn_jax.config import save_config
from rpn_jax.inference import command
from rpn_jax.models import variable_shapes
from rpn_jax.training import run as train_run
from rpn_jax.weights.folders import save_variables


@pytest.fixture
def config_file(tiny_config, tmp_path):
    path = tmp_path / "tiny.json"
    save_config(tiny_config, path)
    return path


@pytest.fixture(scope="module")
def weights(tiny_config, tmp_path_factory):
    """A folder of weights of the small model, all zero."""
    folder = tmp_path_factory.mktemp("weights")
    shapes = variable_shapes(tiny_config)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    save_variables(folder, tiny_config, zeros)
    return folder


@pytest.fixture
def broken_root(coco_root, tmp_path):
    root = tmp_path / "broken"
    shutil.copytree(coco_root, root)
    return root


def complaint(capsys, *words):
    """Run a command that must fail for its user; the one line that it says."""
    assert cli.main([str(word) for word in words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    return said


def edit_annotations(root, change):
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def train(capsys, config_file, workdir, *flags):
    return complaint(capsys, "train", config_file, "--workdir", workdir, *flags)


def test_missing_folder(capsys, config_file, tmp_path):
    said = train(capsys, config_file, tmp_path / "w", "--data.root", tmp_path / "none")
    assert str(tmp_path / "none") in said
    assert not (tmp_path / "w").exists()


def test_missing_picture(capsys, config_file, broken_root, tmp_path):
    next((broken_root / "train").iterdir()).unlink()
    said = train(capsys, config_file, tmp_path / "w", "--data.root", broken_root)
    assert ".png" in said


def test_not_json(capsys, config_file, broken_root, tmp_path):
    (broken_root / "annotations" / "instances_train.json").write_text("{broken")
    said = train(capsys, config_file, tmp_path / "w", "--data.root", broken_root)
    assert "instances_train.json" in said
    assert "JSON" in said


def test_weights_to_start_from_that_are_missing(capsys, config_file, tmp_path):
    said = train(capsys, config_file, tmp_path / "w", "--train.init-weights", tmp_path / "no.pth")
    assert "no.pth" in said
    assert not (tmp_path / "w").exists()


def test_no_box_to_find(capsys, config_file, broken_root, tmp_path):
    path = broken_root / "annotations" / "instances_test.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    root = ["--data.root", broken_root]
    said = train(capsys, config_file, tmp_path / "w", *root)
    assert "split 'test': has no box to find" in said
    assert "--train.eval-every 0" in said
    assert not (tmp_path / "w").exists()
    said = complaint(capsys, "evaluate", config_file, "--weights", tmp_path / "none", *root)
    assert "split 'test': has no box to find" in said


def test_box_out_of_its_picture(capsys, config_file, broken_root, tmp_path):
    def move(content):
        content["annotations"][0]["bbox"] = [300, 10, 50, 20]

    edit_annotations(broken_root, move)
    said = train(capsys, config_file, tmp_path / "w", "--data.root", broken_root)
    assert "300" in said
    assert "--data.clip-boxes" in said


def test_unknown_key(capsys, config_file, tmp_path):
    said = train(capsys, config_file, tmp_path / "w", "--optim.learning-rat", "1")
    assert "--optim.learning-rate" in said


def test_wrong_type(capsys, config_file, tmp_path):
    said = train(capsys, config_file, tmp_path / "w", "--optim.learning-rate", "fast")
    assert "fast" in said


def test_impossible_value(capsys, config_file, tmp_path):
    said = train(capsys, config_file, tmp_path / "w", "--optim.momentum", "1.5")
    assert "optim.momentum = 1.5" in said


def test_weights_of_another_model(capsys, weights, config_file, tmp_path):
    said = complaint(
        capsys, "evaluate", config_file, "--weights", weights, "--model.rpn.channels", "48"
    )
    assert "rpn_head" in said
    assert "48" in said


def test_weights_of_another_model_with_the_same_shapes(capsys, weights, config_file):
    flags = ["--weights", weights, "--pixels.order", "bgr"]
    said = complaint(capsys, "evaluate", config_file, *flags)
    assert "pixels.order is 'rgb' in the weights and 'bgr' in the config" in said


def test_picture_that_is_no_picture(capsys, weights, config_file, tmp_path):
    (tmp_path / "a.jpg").write_text("no picture")
    out = tmp_path / "out"
    said = complaint(
        capsys, "propose", config_file, tmp_path / "a.jpg", "--weights", weights, "--out", out
    )
    assert "a.jpg" in said
    assert not out.exists()


def test_training_picture_that_is_no_picture(
    capsys, weights, config_file, broken_root, tmp_path, monkeypatch
):
    monkeypatch.setattr(train_run, "compile_steps", lambda *arguments: {})  # No step runs.
    for path in (broken_root / "train").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    flags = ["--data.root", broken_root, "--train.init-weights", weights]
    said = train(capsys, config_file, tmp_path / "w", *flags)
    assert ".png" in said


def test_out_that_is_a_folder(capsys, weights, config_file, tmp_path, monkeypatch):
    (tmp_path / "figures.json").mkdir()
    flags = ["--weights", weights, "--out", tmp_path]
    said = complaint(capsys, "evaluate", config_file, *flags)
    assert said == f"error: {tmp_path / 'figures.json'}: is a folder. Choose the path of a file.\n"


def test_missing_weights_leave_no_folder_of_the_out(capsys, config_file, tmp_path):
    flags = ["--weights", tmp_path / "none", "--out", tmp_path / "deep" / "recall.json"]
    said = complaint(capsys, "evaluate", config_file, *flags)
    assert f"weights {tmp_path / 'none'}: no such file or folder" in said
    assert not (tmp_path / "deep").exists()


def test_results_that_are_a_folder(capsys, weights, config_file, coco_root, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "stream_results", None)  # the long work
    (tmp_path / "pictures.json").mkdir()
    pictures = coco_root / "test"
    flags = ["--weights", weights, "--out", tmp_path]
    said = complaint(capsys, "propose", config_file, pictures, *flags)
    assert f"{tmp_path / 'pictures.json'}: is a folder" in said


def test_no_gpu(capsys, config_file, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    said = train(capsys, config_file, tmp_path / "w", "--platform", "gpu")
    assert "no GPU" in said


def test_work_directory_that_cannot_be_written(capsys, config_file, tmp_path):
    (tmp_path / "file").touch()
    said = train(capsys, config_file, tmp_path / "file" / "w")
    assert str(tmp_path / "file") in said


def test_a_file_name_that_is_not_utf_8_is_a_picture(config_file, weights, tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    folder.mkdir()
    name = os.fsdecode(b"\xff\xfe.png")
    assert cv2.imwrite(str(folder / "a.png"), np.zeros((64, 64, 3), np.uint8))
    (folder / "a.png").rename(folder / name)
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8", "strict"))
    words = ["propose", config_file, folder, "--weights", weights, "--out", out, "--draw", "1"]
    assert cli.main([str(word) for word in words]) == 0
    (picture,) = json.loads((out / "pictures.json").read_text())["images"]
    assert picture["file_name"] == str(folder / name)
    assert (out / f"1_{name}").exists()
