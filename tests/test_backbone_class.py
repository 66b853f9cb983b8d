"""The commands with a backbone whose class the config names: train, resume, evaluate, propose."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import rpn_jax
from rpn_jax import cli, commands
from rpn_jax.benchmark.all_configs import backbone_name
from rpn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    ModelConfig,
    RoIHeadConfig,
    RPNHeadConfig,
    load_config,
)
from rpn_jax.errors import UserError
from rpn_jax.models import build_detector, variable_shapes
from rpn_jax.weights.folders import check_same_model
from rpn_jax.weights.torch import initial_variables

NAME = "tests.models.test_own_backbone:SmallCNN"
MODEL = ModelConfig(
    backbone_class=NAME,
    neck_channels=8,
    rpn=RPNHeadConfig(channels=8, anchors=AnchorConfig(strides=(8, 16, 32), scales=(2.0,))),
)


@pytest.fixture(scope="module")
def config(tiny_config):
    return replace(tiny_config, name="own", model=MODEL)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    commands.train(config, workdir, resume=False)
    return workdir


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_trains_what_the_class_trains(config, run):
    assert load_config(run).model.backbone_class == NAME
    params = rpn_jax.load_variables(run)["params"]["backbone"]
    start = rpn_jax.init_variables(config, seed=config.train.seed)["params"]["backbone"]
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), params, start)
    assert moved["conv"]["kernel"]
    assert not moved["stem"]["kernel"]


def test_a_resumed_run_ends_with_the_same_bits(config, run, tmp_path, capsys):
    commands.train(replace(config, train=replace(config.train, epochs=1)), tmp_path, resume=False)
    assert "frozen" not in capsys.readouterr().out
    commands.train(config, tmp_path, resume=True)
    one, two = (rpn_jax.load_variables(folder / "checkpoints" / "6") for folder in (run, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_evaluate_gives_the_figures_of_training(run, tmp_path):
    assert cli.main(["evaluate", "--weights", str(run), "--out", str(tmp_path / "out.json")]) == 0
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    last = next(line for line in reversed(metrics_of(run)) if "AR@100" in line)
    assert figures["AR@100"] == last["AR@100"]


def test_a_proposer_is_loaded_from_the_folder(config, run):
    path = sorted((Path(config.data.root) / "test").iterdir())[0]
    (result,) = rpn_jax.Proposer.load(run)([path])
    assert len(result.scores) > 0


def test_other_weights_are_refused(config, tiny_config, run, tmp_path):
    with pytest.raises(UserError, match="do not match the config"):
        rpn_jax.Proposer(tiny_config, rpn_jax.init_variables(config))
    resnet = replace(config, model=replace(config.model, backbone_class=""))
    for depth in (50, 101):
        resnet = replace(resnet, model=replace(resnet.model, backbone=BackboneConfig(depth=depth)))
        with pytest.raises(UserError, match=r"model\.backbone_class"):
            initial_variables(resnet, str(run))


def test_weights_have_no_names_in_pytorch(run, tmp_path, capsys):
    assert cli.main(["convert", str(run), "--to-torch", str(tmp_path / "w.pth")]) == 2
    error = capsys.readouterr().err
    assert f"model.backbone_class = '{NAME}': PyTorch has no names for the weights" in error
    assert not (tmp_path / "w.pth").exists()


def test_a_second_stage_uses_the_features_of_the_class(config):
    model = replace(config.model, roi=RoIHeadConfig(num_classes=2, channels=8))
    variables = variable_shapes(replace(config, model=model))
    images = jax.numpy.zeros((1, 64, 64, 3))
    boxes = jax.numpy.array([[[8.0, 8.0, 40.0, 40.0]]])
    outputs, roi = jax.eval_shape(build_detector(model).apply, variables, images, boxes)
    assert [level.shape[1:3] for level in outputs.objectness] == [(8, 8), (4, 4), (2, 2)]
    assert roi.class_logits.shape == (1, 1, 3)


def test_the_table_of_all_configs_names_the_class(config):
    assert backbone_name(config) == "SmallCNN"


def test_the_example_describes_a_network_of_the_shapes_that_it_states():
    config = load_config("examples/own_backbone.py")
    images = jax.ShapeDtypeStruct((1, 96, 128, 3), np.float32)
    outputs = jax.eval_shape(build_detector(config.model).apply, variable_shapes(config), images)
    shapes = [level.shape[1:3] for level in outputs.objectness]
    assert shapes == [(24, 32), (12, 16), (6, 8), (3, 4)]


FILE = """
import flax.linen as nn

class Half(nn.Module):
    strides = (2,)

class Sized(nn.Module):
    size: int
    strides, norm_of = (2,), None
    def trains(self, path): return True
    def __call__(self, images, train): return (images,)

class Whole(nn.Module):
    strides, norm_of = (4, 8, 16, 32), None
    def trains(self, path): return True
    @nn.compact
    def __call__(self, images, train):
        return tuple(nn.Conv(8, (1, 1), strides=n)(images) for n in self.strides)

class OneStride(Whole):
    strides = 16

class ListOfStrides(Whole):
    strides = [4, 8, 16, 32]

class NoMethod(Whole):
    trains = True

class SaysNothing(Whole):
    def trains(self, path): pass

class TrainsByName(Whole):
    def __call__(self, images, *, train): pass

class WrongNorms(Whole):
    norm_of = ("conv", "norm")

class CannotFold(Whole):
    norm_of = {"conv": "norm"}

class OneMap(Whole):
    def __call__(self, images, train): return {"map": images}

class OfOneSize(Whole):
    @nn.compact
    def __call__(self, images, train):
        height, width = images.shape[1] // 4, images.shape[2] // 4
        positions = self.param("positions", nn.initializers.ones, (height, width, 8))
        maps = (nn.Conv(8, (1, 1), strides=n)(images) for n in self.strides)
        first, *others = maps
        return (first + positions, *others)
"""


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("half", "must be a module (without .py) and a class, such as 'my_package.my_module:My"),
        ("half:", "must be a module (without .py) and a class"),
        ("a b:Half", "must be a module (without .py) and a class"),
        ("in_this_folder.py:Half", "must be a module (without .py) and a class"),
        ("nowhere.half:Half", "there is no module nowhere.half. Install it"),
        ("in_this_folder.nowhere:Half", "there is no module in_this_folder.nowhere. Install it"),
        ("in_this_folder:Halv", "has no Flax module 'Halv'; did you mean 'Half'?"),
        ("in_this_folder:nn", "has no Flax module 'nn'"),
        ("in_this_folder:Half", "the class has no norm_of, trains, __call__. rpn_jax."),
        ("in_this_folder:Sized", "cannot be made without arguments (Sized.__init__() missing 1"),
        ("in_this_folder:OneStride", "strides is 16: must be a tuple of whole numbers."),
        ("in_this_folder:ListOfStrides", "strides is [4, 8, 16, 32]: must be a tuple"),
        ("in_this_folder:NoMethod", "trains is True: must be a method."),
        ("in_this_folder:TrainsByName", "__call__ cannot be called with (images, train): "),
        ("in_this_folder:WrongNorms", "norm_of is ('conv', 'norm'): must be None or a dict."),
        ("in_this_folder:CannotFold", "the class needs a field 'folded: bool = False', too."),
        ("imports_nothing:Net", "fails with ModuleNotFoundError: No module named 'not_installed"),
        ("exits:Net", "module exits fails with SystemExit: 3"),
    ],
)
def test_a_class_that_cannot_be_used_is_one_line(
    name, complaint, coco_root, tmp_path, monkeypatch, capsys
):
    write_modules(tmp_path, monkeypatch)
    words = ["--model.backbone-class", name, "--data.root", str(coco_root), "--workdir", "run"]
    assert cli.main(["train", "rpn_r18_fpn_gn_small", *words]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: model.backbone_class = '{name}': ")
    assert complaint in said.err
    assert "reading" not in said.out
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("OfOneSize", "'params.backbone.positions' has shape (8, 8, 8) for small pictures and (32"),
        ("OneMap", "returns a dict: must return a tuple with one feature map for each stride."),
        ("SaysNothing", "trains(('Conv_0', 'bias')) returns None: must be True or False"),
    ],
)
def test_a_network_that_cannot_be_trained_is_one_line(
    name, complaint, coco_root, tmp_path, monkeypatch, capsys
):
    write_modules(tmp_path, monkeypatch)
    words = ["--model.backbone-class", f"in_this_folder:{name}", "--data.root", str(coco_root)]
    assert cli.main(["train", "rpn_r18_fpn_gn_small", *words, "--workdir", "run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: backbone: ")
    assert complaint in error
    assert not Path("run").exists()


def write_modules(folder, monkeypatch):
    """Write modules to the current folder. An earlier test can have imported others."""
    (folder / "in_this_folder.py").write_text(FILE)
    (folder / "imports_nothing.py").write_text("import not_installed_anywhere")
    (folder / "exits.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(folder)
    for name in ("in_this_folder", "imports_nothing", "exits"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_head_layer4_needs_the_resnet():
    roi = RoIHeadConfig(num_classes=2, head="layer4")
    with pytest.raises(UserError, match=r"model\.roi\.head = 'layer4': must be 'fc' with"):
        replace(MODEL, roi=roi)


def test_settings_of_the_resnet_do_not_matter(config, run):
    other = replace(MODEL, backbone=BackboneConfig(depth=101))
    check_same_model(replace(config, model=other), run)


def test_a_backbone_alone_starts_a_run(config, tmp_path):
    trained = rpn_jax.init_variables(config, seed=5)["params"]["backbone"]
    rpn_jax.save_variables(tmp_path / "pre", config, {"params": {"backbone": trained}})
    with pytest.raises(UserError, match="backbone"):  # without its statistics
        initial_variables(config, str(tmp_path / "pre"))
    statistics = rpn_jax.init_variables(config)["batch_stats"]
    variables = {"params": {"backbone": trained}, "batch_stats": statistics}
    rpn_jax.save_variables(tmp_path / "whole", config, variables)
    start, summary = initial_variables(config, str(tmp_path / "whole"))
    jax.tree.map(np.testing.assert_array_equal, start["params"]["backbone"], trained)
    assert "random values for neck" in summary
