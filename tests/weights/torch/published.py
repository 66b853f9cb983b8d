"""Make small weights files in the formats of published ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch

from rpn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    Config,
    ModelConfig,
    RoIHeadConfig,
    RPNHeadConfig,
    replace,
    save_config,
)
from tests.golden_files import FOLDER
from tools.parity.weights import array_by_rule

Shapes = dict[str, tuple[int, ...]]
Arrays = dict[str, np.ndarray]

TINY = Config(
    name="tiny",
    model=ModelConfig(
        backbone=BackboneConfig(depth=50, num_stages=2),
        neck_channels=8,
        rpn=RPNHeadConfig(channels=8, anchors=AnchorConfig(strides=(4, 8, 16))),
    ),
)
"""Two stages of a ResNet-50, and a narrow pyramid and head."""

TINY_TWO_STAGES = replace(
    TINY,
    name="tiny-two-stages",
    model=replace(TINY.model, roi=RoIHeadConfig(num_classes=3, channels=8)),
)
"""`TINY` with a second stage."""

TINY_CAFFE = replace(
    TINY,
    name="tiny-caffe",
    model=replace(TINY.model, backbone=replace(TINY.model.backbone, style="caffe")),
)
"""The same shapes in the other style."""


def tiny_config_file(folder: Path, config: Config = TINY) -> str:
    path = folder / f"{config.name}.json"
    save_config(config, path)
    return str(path)


def norm_shapes(name: str, features: int) -> Shapes:
    shapes: Shapes = {
        f"{name}.{word}": (features,) for word in ("weight", "bias", "running_mean", "running_var")
    }
    return {**shapes, f"{name}.num_batches_tracked": ()}


def tiny_backbone_shapes(prefix: str = "backbone.") -> Shapes:
    """Return the state dict's shapes of `TINY`'s backbone, copied from PyTorch's ResNet."""
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7), **norm_shapes("bn1", 64)}
    features = 64
    for stage, blocks in ((1, 3), (2, 4)):
        planes = 64 * 2 ** (stage - 1)
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (planes, features, 1, 1)
            shapes |= norm_shapes(f"{name}.bn1", planes)
            shapes[f"{name}.conv2.weight"] = (planes, planes, 3, 3)
            shapes |= norm_shapes(f"{name}.bn2", planes)
            shapes[f"{name}.conv3.weight"] = (4 * planes, planes, 1, 1)
            shapes |= norm_shapes(f"{name}.bn3", 4 * planes)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * planes, features, 1, 1)
                shapes |= norm_shapes(f"{name}.downsample.1", 4 * planes)
            features = 4 * planes
    return {prefix + key: shape for key, shape in shapes.items()}


def tiny_shapes() -> Shapes:
    """Return the shapes of the state dict that MMDetection writes for `TINY`."""
    shapes = tiny_backbone_shapes()
    for level, features in enumerate((256, 512)):
        shapes[f"neck.lateral_convs.{level}.conv.weight"] = (8, features, 1, 1)
        shapes[f"neck.lateral_convs.{level}.conv.bias"] = (8,)
        shapes[f"neck.fpn_convs.{level}.conv.weight"] = (8, 8, 3, 3)
        shapes[f"neck.fpn_convs.{level}.conv.bias"] = (8,)
    for name, features, size in (("conv", 8, 3), ("cls", 3, 1), ("reg", 12, 1)):
        shapes[f"rpn_head.rpn_{name}.weight"] = (features, 8, size, size)
        shapes[f"rpn_head.rpn_{name}.bias"] = (features,)
    return shapes


def second_stage_shapes(classes: int, inputs: int = 8) -> Shapes:
    """Return the shapes of a box head with hidden layers of 8 that reads maps of 7x7."""
    shapes: Shapes = {}
    for name, outputs, columns in (
        ("shared_fcs.0", 8, inputs * 49),
        ("shared_fcs.1", 8, 8),
        ("fc_cls", classes + 1, 8),
        ("fc_reg", 4 * classes, 8),
    ):
        shapes[f"roi_head.bbox_head.{name}.weight"] = (outputs, columns)
        shapes[f"roi_head.bbox_head.{name}.bias"] = (outputs,)
    return shapes


def golden_shapes(name: str) -> Shapes:
    folder = FOLDER / "two_stage" if name.startswith("faster-rcnn") else FOLDER
    shapes = json.loads((folder / "keys" / f"{name}.json").read_text())
    return {key: tuple(shape) for key, shape in shapes.items()}


def shapes_of_published(name: str) -> Shapes:
    """Return the shapes of the file of a Faster R-CNN of the reference. Schedules share them."""
    of_1x = re.sub(r"_ms-\dx", "_1x", name.replace("-c4_ms-1x", "_c4-1x"))
    if "32x8d" not in name:
        return golden_shapes(of_1x)
    return widened(golden_shapes(of_1x.replace("32x8d", "32x4d")))


def widened(shapes: Shapes) -> Shapes:
    """Return the shapes of a ResNeXt whose 3x3 convolutions have twice as many channels."""
    doubled_axes = {"conv1": (0,), "bn1": (0,), "conv2": (0, 1), "bn2": (0,), "conv3": (1,)}
    wider = {}
    for key, shape in shapes.items():
        block = re.match(r"backbone\.layer\d\.\d+\.(\w+)", key)
        axes = doubled_axes.get(block[1], ()) if block else ()
        wider[key] = tuple(2 * side if axis in axes else side for axis, side in enumerate(shape))
    return wider


def filled(shapes: Shapes, seed: int = 1) -> Arrays:
    """Fill shapes by the rule of the reference figures. Counters of batch norms are 0."""
    return {
        key: np.zeros(shape, np.int64)
        if key.endswith("num_batches_tracked")
        else array_by_rule(key, shape, seed)
        for key, shape in shapes.items()
    }


def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def caffe2_names(arrays: Arrays) -> Arrays:
    """Rename a backbone's arrays to Detectron's names, without the statistics of norms."""
    renamed = {}
    for key, array in arrays.items():
        if key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            continue
        *modules, word = key.split(".")
        if modules[0] == "conv1":
            renamed["conv1_w"] = array
        elif modules[0] == "bn1":
            renamed[f"res_conv1_bn_{word[0].replace('w', 's')}"] = array
        else:
            stage, block, module = int(modules[0][-1]) + 1, modules[1], modules[2]
            branch = "branch1" if module == "downsample" else f"branch2{'abc'[int(module[-1]) - 1]}"
            is_norm = module.startswith("bn") or modules[2:] == ["downsample", "1"]
            suffix = f"bn_{word[0].replace('w', 's')}" if is_norm else "w"
            renamed[f"res{stage}_{block}_{branch}_{suffix}"] = array
    return renamed


def detectron2_names(arrays: Arrays) -> Arrays:
    """Rename a backbone's arrays to detectron2's names."""
    renamed = {}
    for key, array in arrays.items():
        name = key if key.startswith("layer") else f"stem.{key}"
        for stage in (1, 2, 3, 4):
            name = name.replace(f"layer{stage}", f"res{stage + 1}")
        for index in (1, 2, 3):
            name = name.replace(f"bn{index}", f"conv{index}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[name] = array
    return renamed


def expected_variables(arrays: Arrays) -> dict[tuple[str, ...], np.ndarray]:
    """Convert MMDetection's arrays to this package's layout, by flat path."""
    expected = {}
    for key, array in arrays.items():
        *modules, word = key.split(".")
        if word == "num_batches_tracked":
            continue
        if word.startswith("running_"):
            expected[("batch_stats", *modules, word.removeprefix("running_"))] = array
        elif "shared_fcs.0" in key and word == "weight":
            outputs, channels = len(array), array.shape[1] // 49
            kernel = np.zeros((7, 7, channels, outputs), np.float32)
            for column in range(array.shape[1]):
                channel, row, place = column // 49, column // 7 % 7, column % 7
                kernel[row, place, channel] = array[:, column]
            expected[("params", *modules, "kernel")] = kernel
        elif array.ndim == 2:
            expected[("params", *modules, "kernel")] = array.T.copy()
        elif array.ndim == 4:
            kernel = np.zeros((*array.shape[2:], array.shape[1], array.shape[0]), np.float32)
            for row in range(array.shape[2]):
                for column in range(array.shape[3]):
                    kernel[row, column] = array[:, :, row, column].T
            expected[("params", *modules, "kernel")] = kernel
        elif word == "weight":
            expected[("params", *modules, "scale")] = array
        else:
            expected[("params", *modules, "bias")] = array
    return expected
