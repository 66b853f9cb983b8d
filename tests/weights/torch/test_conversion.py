"""Conversion of files to folders and back, bit for bit, and its errors."""

from __future__ import annotations

import errno
import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from rich.console import Console

from rpn_jax.config import BackboneConfig, load_config
from rpn_jax.errors import UserError
from rpn_jax.models import RPN, variable_shapes
from rpn_jax.weights.folders import load_variables
from rpn_jax.weights.torch import convert, print_report, to_torch
from rpn_jax.weights.torch.conversion import state_dict
from rpn_jax.weights.torch.names import nest
from tests.reference_configs import ELEVEN
from tests.weights.torch.published import (
    TINY,
    TINY_CAFFE,
    Arrays,
    caffe2_names,
    detectron2_names,
    expected_variables,
    filled,
    golden_shapes,
    tensors,
    tiny_backbone_shapes,
    tiny_config_file,
    tiny_shapes,
)

WEIGHTS = filled(tiny_shapes())


def save(content: object, path: Path) -> str:
    torch.save(content, path)
    return str(path)


def assert_holds(folder: Path, arrays: Arrays) -> None:
    found, expected = flatten_dict(load_variables(folder)), expected_variables(arrays)
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        assert found[path].dtype == np.float32
        assert found[path].tobytes() == array.tobytes(), path


def test_a_detector_fills_every_parameter(tmp_path: Path) -> None:
    content = {"state_dict": tensors(WEIGHTS), "meta": {"epoch": 12}}
    source = save(content, tmp_path / "w.pth")
    report = convert(source, tmp_path / "out", tiny_config_file(tmp_path))
    assert_holds(tmp_path / "out", WEIGHTS)
    assert load_config(tmp_path / "out" / "config.json") == TINY
    assert report.kind == "detector"
    assert report.initialised == ()
    assert len(report.used) + len(report.left_out) == len(WEIGHTS)
    numbers = sum(a.size for key, a in WEIGHTS.items() if not key.endswith("tracked"))
    assert report.numbers == numbers
    assert report.metadata == {"meta": {"epoch": 12}}
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["sha256"] == report.sha256
    assert written["left_out"] == report.left_out


def test_ema_files_are_converted_to_the_averages(tmp_path: Path) -> None:
    last_step = filled(tiny_shapes(), seed=2)
    mmcv = {f"ema_{key.replace('.', '_')}": array for key, array in last_step.items()}
    mmengine = {
        "steps": torch.tensor(9),
        **tensors({f"module.{k}": a for k, a in last_step.items()}),
    }
    contents = {
        "mmcv": {"state_dict": tensors({**WEIGHTS, **mmcv})},
        "mmengine": {"state_dict": tensors(WEIGHTS), "ema_state_dict": mmengine},
    }
    for name, content in contents.items():
        source = save(content, tmp_path / f"{name}.pth")
        report = convert(source, tmp_path / name, tiny_config_file(tmp_path))
        assert_holds(tmp_path / name, WEIGHTS)
        assert any("averages" in reason for reason in report.left_out.values())


def test_converting_to_torch_and_back_changes_no_bit(tmp_path: Path) -> None:
    source = save(tensors(WEIGHTS), tmp_path / "w.pth")
    convert(source, tmp_path / "out", tiny_config_file(tmp_path))
    to_torch(tmp_path / "out", tmp_path / "back.pth")
    content = torch.load(tmp_path / "back.pth", weights_only=True)
    back = content["state_dict"]
    assert back.keys() == WEIGHTS.keys()
    for key, array in WEIGHTS.items():
        assert back[key].shape == array.shape
        assert back[key].numpy().dtype == array.dtype
        assert back[key].numpy().tobytes() == array.tobytes(), key
    assert "meta" in content
    assert not list(tmp_path.glob(".*")), "nothing partial is left"


@pytest.mark.parametrize("name", ELEVEN)
def test_every_config_has_the_state_dict_of_the_reference(name: str) -> None:
    shapes = golden_shapes(name)
    # Views of a single number: full-size arrays of eleven models would take minutes.
    arrays = {
        key: np.broadcast_to(np.float32(number), shape)
        for number, (key, shape) in enumerate(shapes.items())
    }
    variables = nest(
        {
            path: np.broadcast_to(array.flat[0], array.shape)
            for path, array in _by_path(arrays).items()
        }
    )
    back = state_dict(variables)
    assert {key: array.shape for key, array in back.items()} == shapes
    for key, array in back.items():
        wanted = 0 if key.endswith("num_batches_tracked") else arrays[key].flat[0]
        assert array.flat[0] == wanted, key


def _by_path(arrays: Arrays) -> dict[tuple[str, ...], np.ndarray]:
    """Return the same as `expected_variables` without copies."""
    words = {"running_mean": ("batch_stats", "mean"), "running_var": ("batch_stats", "var")}
    paths = {}
    for key, array in arrays.items():
        *modules, word = key.split(".")
        if word == "num_batches_tracked":
            continue
        if array.ndim == 4:
            paths[("params", *modules, "kernel")] = array.transpose(2, 3, 1, 0)
        else:
            scale = "bias" if word == "bias" else "scale"
            collection, word = words.get(word, ("params", scale))
            paths[(collection, *modules, word)] = array
    return paths


def test_a_full_size_file_by_its_published_name(tmp_path: Path) -> None:
    weights = filled(golden_shapes("rpn_r50-caffe-c4_1x_coco"), seed=5)
    published = {key.replace("rpn_head.", "bbox_head."): a for key, a in weights.items()}
    source = save(
        {"meta": {}, "state_dict": tensors(published)},
        tmp_path / "rpn_r50_caffe_c4_1x_coco_20200131.pth",
    )
    report = convert(source, tmp_path / "out", None)
    assert report.config == "rpn_r50-caffe-c4_1x_coco"
    assert report.config_chosen_by == "file name"
    assert_holds(tmp_path / "out", weights)
    to_torch(tmp_path / "out", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert all(back[key].numpy().tobytes() == array.tobytes() for key, array in weights.items())


@pytest.mark.parametrize("zoo", ["torchvision", "detectron2", "Detectron"])
def test_backbones_fill_the_backbone(zoo: str, tmp_path: Path) -> None:
    arrays = filled(tiny_backbone_shapes(prefix=""))
    expected = {f"backbone.{key}": array for key, array in arrays.items()}
    if zoo == "torchvision":
        source = save(tensors({**arrays, "fc.weight": np.ones((10, 512))}), tmp_path / "w.pth")
    elif zoo == "detectron2":
        source = save({"model": tensors(detectron2_names(arrays))}, tmp_path / "w.pth")
    else:
        source = str(tmp_path / "R-50.pkl")
        Path(source).write_bytes(pickle.dumps(caffe2_names(arrays), 2))
        for key in expected:
            if key.endswith("running_mean"):
                expected[key] = np.zeros_like(expected[key])
            elif key.endswith("running_var"):
                expected[key] = np.ones_like(expected[key])
    config = TINY_CAFFE if zoo == "Detectron" else TINY
    report = convert(source, tmp_path / "out", tiny_config_file(tmp_path, config))
    assert_holds(tmp_path / "out", expected)
    assert report.kind == "backbone"
    assert {name.split(".")[0] for name in report.initialised} == {"neck", "rpn_head"}
    statistics = sum(key.endswith(("running_mean", "running_var")) for key in expected)
    assert len(report.assumed) == (statistics if zoo == "Detectron" else 0)


def changed(key: str, array: np.ndarray | None) -> Arrays:
    arrays = {**WEIGHTS, key: array}
    return {name: value for name, value in arrays.items() if value is not None}


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        (changed("rpn_head.rpn_cls.bias", None), r"'rpn_head\.rpn_cls\.bias' is missing$"),
        (changed("backbone.bn1.running_var", None), r"'backbone\.bn1\.running_var' is missing$"),
        (
            changed("neck.extra.weight", np.ones(3, np.float32)),
            r"'neck\.extra\.weight' is unexpected$",
        ),
        (
            changed("rpn_head.rpn_reg.bias", np.ones(16, np.float32)),
            r"has shape \(16,\), expected \(12,\)$",
        ),
        (
            changed("rpn_head.rpn_reg.bias", np.full(12, np.nan, np.float32)),
            "holds NaN or infinite",
        ),
        (
            changed("rpn_head.rpn_reg.bias", np.ones(12, np.int64)),
            "has dtype int64, not a",
        ),
    ],
    ids=["missing", "missing statistic", "unexpected", "other shape", "not finite", "integer"],
)
def test_any_difference_is_an_error_that_leaves_no_folder(
    weights: Arrays, complaint: str, tmp_path: Path
) -> None:
    source = save(tensors(weights), tmp_path / "w.pth")
    config = tiny_config_file(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=complaint) as caught:
        convert(source, tmp_path / "out", config)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_the_error_for_another_architecture_describes_it(tmp_path: Path) -> None:
    backbone = replace(TINY.model.backbone, groups=32, base_width=4)
    other = replace(TINY, name="other", model=replace(TINY.model, backbone=backbone))
    source = save(tensors(WEIGHTS), tmp_path / "w.pth")
    with pytest.raises(UserError) as caught:
        convert(source, tmp_path / "out", tiny_config_file(tmp_path, other))
    line = str(caught.value)
    assert "holds ResNet-50 of 2 stages with batch norm" in line
    assert "config other needs ResNeXt-50 32x4d of 2 stages" in line
    first = "'backbone.layer1.0.conv1.weight' has shape (64, 64, 1, 1), expected (128, 64, 1, 1)"
    assert f"{first} (and " in line
    assert line.count("has shape") == 1


def test_an_existing_folder_is_not_changed(tmp_path: Path) -> None:
    source = save(tensors(WEIGHTS), tmp_path / "w.pth")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        convert(source, tmp_path / "out", tiny_config_file(tmp_path))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_failed_write_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    source = save(tensors(WEIGHTS), tmp_path / "w.pth")
    config = tiny_config_file(tmp_path)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("rpn_jax.weights.torch.conversion.write_report", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        convert(source, tmp_path / "out", config)
    assert sorted(tmp_path.iterdir()) == before


def test_to_torch_does_not_overwrite_files(tmp_path: Path) -> None:
    source = save(tensors(WEIGHTS), tmp_path / "w.pth")
    convert(source, tmp_path / "out", tiny_config_file(tmp_path))
    with pytest.raises(UserError, match="exists already"):
        to_torch(tmp_path / "out", tmp_path / "w.pth")
    with pytest.raises(UserError, match="cannot be written"):
        to_torch(tmp_path / "out", tmp_path / "nowhere" / "w.pth")
    with pytest.raises(UserError, match="cannot be written"):
        to_torch(tmp_path / "out", tmp_path / "w.pth" / "inside.pth")
    with pytest.raises(UserError, match=r"cannot be written \(File name too long\)"):
        to_torch(tmp_path / "out", tmp_path / f"{'a' * 300}.pth")


def test_a_full_disk_is_named_and_leaves_no_torch_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_to_full_disk(content: object, file: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904, as PyTorch raises it

    source = save(tensors(WEIGHTS), tmp_path / "w.pth")
    convert(source, tmp_path / "out", tiny_config_file(tmp_path))
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(torch, "save", write_to_full_disk)
    with pytest.raises(UserError, match=r"back.pth: cannot be written \(No space left on device"):
        to_torch(tmp_path / "out", tmp_path / "back.pth")
    assert sorted(tmp_path.iterdir()) == before


def test_group_norms_have_no_counters_in_torch() -> None:
    backbone = BackboneConfig(depth=18, num_stages=2, norm="group", frozen_stages=-1)
    config = replace(TINY, model=replace(TINY.model, backbone=backbone))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(config))
    back = state_dict(zeros)
    assert "backbone.layer1.0.gn1.weight" in back
    assert not any(key.endswith("num_batches_tracked") for key in back)


def test_converted_kernels_compute_the_same_as_torch(tmp_path: Path) -> None:
    source = save(tensors(WEIGHTS), tmp_path / "w.pth")
    convert(source, tmp_path / "out", tiny_config_file(tmp_path))
    images = np.random.default_rng(0).standard_normal((1, 64, 96, 3), np.float32)
    outputs = RPN(TINY.model).apply(load_variables(tmp_path / "out"), images)
    expected = _torch_objectness(tensors(WEIGHTS), torch.from_numpy(images.transpose(0, 3, 1, 2)))
    for found, wanted in zip(outputs.objectness, expected, strict=True):
        wanted_nhwc = wanted.permute(0, 2, 3, 1).numpy()
        error = np.linalg.norm(found - wanted_nhwc) / np.linalg.norm(wanted_nhwc)
        assert error < 1e-5


def _torch_objectness(weights: dict[str, torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    from torch.nn import functional as f

    def conv_norm(x, conv: str, norm: str, stride: int = 1):
        w = weights[f"{conv}.weight"]
        x = f.conv2d(x, w, stride=stride, padding=w.shape[-1] // 2)
        words = ("running_mean", "running_var", "weight", "bias")
        mean, variance, scale, shift = (weights[f"{norm}.{word}"] for word in words)
        return f.batch_norm(x, mean, variance, scale, shift, eps=1e-5)

    def conv(x, name: str):
        w = weights[f"{name}.weight"]
        return f.conv2d(x, w, weights[f"{name}.bias"], padding=w.shape[-1] // 2)

    x = f.relu(conv_norm(x, "backbone.conv1", "backbone.bn1", 2))
    x = f.max_pool2d(x, 3, 2, 1)
    stages = []
    for stage, blocks in ((1, 3), (2, 4)):
        for block in range(blocks):
            name = f"backbone.layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = f.relu(conv_norm(x, f"{name}.conv1", f"{name}.bn1"))
            y = f.relu(conv_norm(y, f"{name}.conv2", f"{name}.bn2", stride))
            y = conv_norm(y, f"{name}.conv3", f"{name}.bn3")
            if block == 0:
                x = conv_norm(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = f.relu(x + y)
        stages.append(x)
    top = conv(stages[1], "neck.lateral_convs.1.conv")
    below = conv(stages[0], "neck.lateral_convs.0.conv") + f.interpolate(top, scale_factor=2)
    levels = [conv(below, "neck.fpn_convs.0.conv"), conv(top, "neck.fpn_convs.1.conv")]
    levels.append(levels[-1][:, :, ::2, ::2])
    return [conv(f.relu(conv(x, "rpn_head.rpn_conv")), "rpn_head.rpn_cls") for x in levels]


def test_the_printed_report_has_counts_reasons_and_metadata(tmp_path: Path) -> None:
    content = {
        "state_dict": tensors({**WEIGHTS, "roi_head.bbox_head.fc_cls.bias": np.ones(81)}),
        "meta": {"epoch": 12, "note": "[/bold]", "config": "a long text\n" * 99},
        "optimizer": {},
    }
    source = save(content, tmp_path / "w-00000000.pth")
    report = convert(source, tmp_path / "out", tiny_config_file(tmp_path))
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=200))
    text = stream.getvalue()
    for words in (
        report.sha256,
        "DIFFER from its SHA-256",
        f"{len(report.used)} tensors with {report.numbers:,} values",
        "roi_head.bbox_head.fc_cls.bias: second stage",
        "optimizer: the state of the optimiser",
        "meta.epoch",
        "[/bold]",
    ):
        assert words in text
    assert "a long text" not in text
