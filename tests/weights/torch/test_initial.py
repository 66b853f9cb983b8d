"""Weights that training starts from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from rpn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    Config,
    ModelConfig,
    RPNHeadConfig,
    TrainConfig,
    config_names,
    load_config,
)
from rpn_jax.errors import UserError
from rpn_jax.models import init_variables
from rpn_jax.weights.torch import convert, initial_variables, published_backbone
from rpn_jax.weights.torch.published import NAMED_FILES
from tests.weights.torch.published import (
    TINY,
    expected_variables,
    filled,
    tensors,
    tiny_backbone_shapes,
    tiny_config_file,
    tiny_shapes,
)

SMALLER = Config(
    name="smaller",
    model=ModelConfig(
        backbone=BackboneConfig(depth=50, num_stages=1),
        neck="none",
        rpn=RPNHeadConfig(channels=8, anchors=AnchorConfig(strides=(4,))),
    ),
)
"""A config with one stage, for fast random initialisation. The files below hold two stages."""


@functools.cache
def random_variables() -> dict[tuple[str, ...], np.ndarray]:
    return flatten_dict(init_variables(SMALLER, seed=3))


@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
def test_a_backbone_is_completed_with_random_values(as_folder: bool, tmp_path: Path) -> None:
    config = replace(SMALLER, train=TrainConfig(seed=3))
    arrays = filled(tiny_backbone_shapes(prefix=""))
    source = tmp_path / "w.pth"
    torch.save(tensors(arrays), source)
    if as_folder:
        convert(str(source), tmp_path / "out", tiny_config_file(tmp_path, SMALLER))
        source = tmp_path / "out"
    found = flatten_dict(initial_variables(config, str(source)).variables)
    backbone = expected_variables({f"backbone.{key}": array for key, array in arrays.items()})
    random = random_variables()
    assert found.keys() == random.keys()
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, backbone.get(path, random[path]))


def test_a_detector_is_loaded_completely(tmp_path: Path) -> None:
    weights = filled(tiny_shapes())
    torch.save({"state_dict": tensors(weights)}, tmp_path / "w.pth")
    found = flatten_dict(initial_variables(TINY, str(tmp_path / "w.pth")).variables)
    expected = expected_variables(weights)
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, expected[path])


def test_a_backbone_of_another_model_is_an_error(tmp_path: Path) -> None:
    torch.save(tensors(filled(tiny_backbone_shapes(prefix=""))), tmp_path / "w.pth")
    convert(str(tmp_path / "w.pth"), tmp_path / "out", tiny_config_file(tmp_path))
    wider = replace(TINY.model.backbone, base_width=128)
    config = replace(TINY, model=replace(TINY.model, backbone=wider))
    for source in ("w.pth", "out"):
        with pytest.raises(UserError, match=r"layer1\.0\.|base_width is 64 in the weights and 128"):
            initial_variables(config, str(tmp_path / source))


@pytest.mark.parametrize(
    ("name", "reason"), [("w.pth", "Permission denied"), ("a" * 300, "File name too long")]
)
def test_an_unreadable_source_is_an_error(
    name: str, reason: str, tmp_path: Path, forbid: Callable[[Path], None]
) -> None:
    if reason == "Permission denied":
        forbid(tmp_path)
    with pytest.raises(UserError, match=rf"^weights .*{name}: cannot be read \({reason}\)$"):
        initial_variables(SMALLER, str(tmp_path / name))


PUBLISHED = {
    "rpn_demo": None,
    "rpn_r18_fpn_gn_small": None,
    "rpn_r50_fpn_1x_coco": "torchvision://resnet50",
    "rpn_r101_fpn_2x_coco": "torchvision://resnet101",
    "rpn_r50-caffe-c4_1x_coco": "open-mmlab://detectron2/resnet50_caffe",
    "rpn_r101-caffe_fpn_1x_coco": "open-mmlab://detectron2/resnet101_caffe",
    "rpn_x101-32x4d_fpn_1x_coco": "open-mmlab://resnext101_32x4d",
    "rpn_x101-64x4d_fpn_2x_coco": "open-mmlab://resnext101_64x4d",
    "faster-rcnn_x101-32x8d_fpn_ms-3x_coco": "open-mmlab://detectron2/resnext101_32x8d",
}


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_published_backbone_of_a_config(name: str, published: str | None) -> None:
    assert published_backbone(load_config(name).model.backbone) == published


@pytest.mark.parametrize("name", config_names())
def test_a_published_backbone_has_the_style_of_the_config(name: str) -> None:
    backbone = load_config(name).model.backbone
    published = published_backbone(backbone)
    assert published is None or NAMED_FILES[published].style == backbone.style


@pytest.mark.parametrize(
    "backbone",
    [
        BackboneConfig(depth=152, style="caffe"),
        BackboneConfig(depth=50, groups=32, base_width=4),
        BackboneConfig(depth=50, base_width=128),
    ],
)
def test_other_networks_have_no_published_backbone(backbone: BackboneConfig) -> None:
    assert published_backbone(backbone) is None
