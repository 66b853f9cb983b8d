"""Files and folders of Faster R-CNNs: conversion, class names, and weights to start from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from rpn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    Config,
    ModelConfig,
    PixelConfig,
    RoIHeadConfig,
    RPNHeadConfig,
    load_config,
)
from rpn_jax.errors import UserError
from rpn_jax.weights.folders import load_variables
from rpn_jax.weights.torch import convert, initial_variables, to_torch
from rpn_jax.weights.torch.conversion import CONFIG_ENTRY
from rpn_jax.weights.torch.match import (
    choose_config,
    class_names_in_metadata,
    expected_shapes,
    match_config,
    match_keys,
    with_classes_of_file,
)
from rpn_jax.weights.torch.published import FASTER_RCNNS, NAMED_FILES
from rpn_jax.weights.torch.style import DetectedStyle, detect_style
from rpn_jax.weights.torch.tables import Style
from tests.reference_configs import REFERENCE_DETECTORS
from tests.weights.torch.published import (
    TINY,
    TINY_TWO_STAGES,
    Arrays,
    expected_variables,
    filled,
    golden_shapes,
    second_stage_shapes,
    shapes_of_published,
    tensors,
    tiny_config_file,
    tiny_shapes,
)

NAMES = ("RBC", "WBC", "Platelets", "other")
WEIGHTS = filled({**tiny_shapes(), **second_stage_shapes(classes=4)})
"""A file of two stages with four classes. `TINY_TWO_STAGES` has three."""

ONE_STAGE = Config(
    name="one-stage",
    model=ModelConfig(
        backbone=BackboneConfig(depth=50, num_stages=1),
        neck="none",
        rpn=RPNHeadConfig(channels=8, anchors=AnchorConfig(strides=(4,))),
        roi=RoIHeadConfig(num_classes=3, channels=8),
    ),
)
"""A Faster R-CNN on one ResNet stage, for fast random initialisation."""


def one_stage_arrays(classes: int) -> Arrays:
    """Return a state dict of `ONE_STAGE` with another number of classes."""
    first = {
        key: shape
        for key, shape in tiny_shapes().items()
        if not key.startswith(("backbone.layer2", "neck."))
    }
    first["rpn_head.rpn_conv.weight"] = (8, 256, 3, 3)
    return filled({**first, **second_stage_shapes(classes, inputs=256)})


def save(arrays: Arrays, path: Path, **entries: Any) -> str:
    torch.save({"state_dict": tensors(arrays), **entries}, path)
    return str(path)


def assert_equal(variables: Any, arrays: Arrays) -> None:
    found, expected = flatten_dict(variables), expected_variables(arrays)
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        assert found[path].tobytes() == array.tobytes(), path


def test_both_stages_and_the_classes_are_read_from_the_file(tmp_path: Path) -> None:
    source = save(WEIGHTS, tmp_path / "w.pth", meta={"CLASSES": NAMES})
    report = convert(source, tmp_path / "out", tiny_config_file(tmp_path, TINY_TWO_STAGES))
    assert_equal(load_variables(tmp_path / "out"), WEIGHTS)
    assert report.class_names == NAMES
    assert "second stage with 4 classes" in report.architecture
    assert report.initialised == ()
    stored = load_config(tmp_path / "out" / "config.json").model.roi
    assert stored == RoIHeadConfig(num_classes=4, class_names=NAMES, channels=8)


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": list(NAMES)},
        {"dataset_meta": {"classes": list(NAMES), "palette": [[1, 2, 3]]}},
        {"dataset_meta": {"CLASSES": list(NAMES)}},
    ],
    ids=["2.x", "3.x", "3.0 candidate"],
)
def test_class_names_in_metadata(meta: dict[str, Any]) -> None:
    assert class_names_in_metadata({"meta": meta, "other": 1}) == NAMES


def test_files_without_usable_names_keep_the_names_of_the_config() -> None:
    names = ("a", "b", "c", "d")
    roi = RoIHeadConfig(num_classes=4, class_names=names, channels=8)
    named = replace(TINY, model=replace(TINY.model, roi=roi))
    shapes = {key: array.shape for key, array in WEIGHTS.items()}
    cases: list[tuple[Config, dict[str, Any], tuple[str, ...]]] = [
        (named, {}, names),
        (named, {"CLASSES": ["one", "two"]}, names),
        (named, {"CLASSES": ["same"] * 4}, names),
        (named, {"dataset_meta": 3}, names),
        (TINY_TWO_STAGES, {}, ("class 1", "class 2", "class 3", "class 4")),
    ]
    for config, meta, expected in cases:
        found = with_classes_of_file(config, shapes, {"meta": meta}).model.roi
        assert found is not None
        assert found.class_names == expected


def test_there_and_back_changes_no_bit_and_keeps_the_names(tmp_path: Path) -> None:
    source = save(WEIGHTS, tmp_path / "w.pth", meta={"CLASSES": NAMES})
    config = tiny_config_file(tmp_path, TINY_TWO_STAGES)
    convert(source, tmp_path / "out", config)
    to_torch(tmp_path / "out", tmp_path / "back.pth")
    content = torch.load(tmp_path / "back.pth", weights_only=True)
    assert content["meta"]["CLASSES"] == content["meta"]["dataset_meta"]["classes"] == NAMES
    assert content["state_dict"].keys() == WEIGHTS.keys()
    for key, array in WEIGHTS.items():
        assert content["state_dict"][key].numpy().tobytes() == array.tobytes(), key
        assert content["state_dict"][key].shape == array.shape
    report = convert(str(tmp_path / "back.pth"), tmp_path / "again", config)
    assert report.class_names == NAMES
    assert_equal(load_variables(tmp_path / "again"), WEIGHTS)


def test_there_and_back_keeps_the_config(tmp_path: Path) -> None:
    assert TINY_TWO_STAGES.model.roi is not None
    roi = replace(
        TINY_TWO_STAGES.model.roi,
        num_classes=4,
        class_names=NAMES,
        category_ids=(5, 9, 10, 20),
    )
    config = replace(
        TINY_TWO_STAGES,
        name="mine",
        model=replace(TINY_TWO_STAGES.model, roi=roi),
        data=replace(TINY_TWO_STAGES.data, scale=(96, 64)),
    )
    convert(
        save(WEIGHTS, tmp_path / "w.pth", meta={"CLASSES": NAMES}),
        tmp_path / "out",
        tiny_config_file(tmp_path, config),
    )
    to_torch(tmp_path / "out", tmp_path / "back.pth")
    report = convert(str(tmp_path / "back.pth"), tmp_path / "again", None)
    assert (report.config, report.config_chosen_by) == ("mine", "metadata")
    assert CONFIG_ENTRY not in json.dumps(report.metadata)
    stored = load_config(tmp_path / "again")
    assert stored == load_config(tmp_path / "out")
    assert stored.model.roi.category_ids == (5, 9, 10, 20)
    # A config that is given comes first.
    convert(str(tmp_path / "back.pth"), tmp_path / "other", tiny_config_file(tmp_path))
    assert load_config(tmp_path / "other").name == TINY.name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"its rpn_jax_config is not JSON \("),
        (3, r"its rpn_jax_config is not JSON \("),
        ('{"modle": 1}', "unknown key 'modle'"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(tmp_path: Path, text: object, message: str) -> None:
    source = save(WEIGHTS, tmp_path / "w.pth", meta={CONFIG_ENTRY: text})
    with pytest.raises(UserError, match=rf"w\.pth: {message}"):
        convert(source, tmp_path / "out", None)


def test_an_rpn_config_takes_the_first_stage(tmp_path: Path) -> None:
    report = convert(
        save(WEIGHTS, tmp_path / "w.pth"), tmp_path / "out", tiny_config_file(tmp_path)
    )
    first = {key: array for key, array in WEIGHTS.items() if not key.startswith("roi_head.")}
    assert_equal(load_variables(tmp_path / "out"), first)
    assert report.class_names == ()
    left_out = {key for key, reason in report.left_out.items() if "second stage" in reason}
    assert left_out == WEIGHTS.keys() - first.keys()


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("roi_head.bbox_head.shared_convs.0.conv.weight", (8, 8, 3, 3), "is unexpected"),
        ("roi_head.bbox_head.fc_reg.weight", (4, 8), r"shape \(4, 8\), expected \(16, 8\)"),
    ],
)
def test_another_box_head_is_an_error(
    key: str, shape: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    arrays = {**WEIGHTS, key: np.zeros(shape, np.float32)}
    with pytest.raises(UserError, match=words):
        convert(
            save(arrays, tmp_path / "w.pth"),
            tmp_path / "out",
            tiny_config_file(tmp_path, TINY_TWO_STAGES),
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", REFERENCE_DETECTORS)
def test_the_config_is_chosen_by_name_and_shapes(name: str) -> None:
    shapes = golden_shapes(name)
    shapes["roi_head.bbox_head.fc_cls.weight"] = (
        21,
        *shapes["roi_head.bbox_head.fc_cls.weight"][1:],
    )
    shapes["roi_head.bbox_head.fc_cls.bias"] = (21,)
    shapes["roi_head.bbox_head.fc_reg.weight"] = (
        80,
        *shapes["roi_head.bbox_head.fc_reg.weight"][1:],
    )
    shapes["roi_head.bbox_head.fc_reg.bias"] = (80,)
    match = match_keys(shapes, Path("w.pth"))
    found = {own: shapes[key] for own, key in match.sources.items()}
    file = Path(name.replace("-", "_") + "_bbox_mAP-0.384_20200504_210434-a5d8aa15.pth")
    config, chosen_by = choose_config(match, found, None, file)
    assert (config.name, chosen_by) == (name, "file name")
    assert config.model.roi is not None
    assert config.model.roi.num_classes == 20


@pytest.mark.parametrize("name", FASTER_RCNNS)
def test_published_files_choose_the_config_of_their_name(name: str) -> None:
    config = f"faster-rcnn_{name}"
    url = NAMED_FILES[f"mmdetection://{config}"].url
    path = Path(url.rpartition("/")[2])
    shapes = shapes_of_published(config)
    match = match_keys(shapes, path)
    found = {own: shapes[key] for own, key in match.sources.items()}
    detected = detect_style(url, path, match.zoo, found, {})
    chosen, chosen_by = choose_config(match, found, detected, path)
    assert (chosen.name, chosen_by) == (config, "file name")


@pytest.mark.parametrize("name", ["r101_fpn_ms-3x_coco", "r101-caffe_fpn_ms-3x_coco"])
def test_a_renamed_multi_scale_file_chooses_the_1x_config(name: str) -> None:
    path = Path("mine.pth")
    shapes = shapes_of_published(f"faster-rcnn_{name}")
    match = match_keys(shapes, path)
    found = {own: shapes[key] for own, key in match.sources.items()}
    style: Style = "caffe" if "caffe" in name else "pytorch"
    chosen = choose_config(match, found, DetectedStyle(style, "metadata"), path)[0]
    assert chosen.name == f"faster-rcnn_{name.replace('ms-3x', '1x')}"


def test_fine_tuning_with_other_classes_starts_their_layers_at_random(tmp_path: Path) -> None:
    arrays = one_stage_arrays(classes=4)
    source = save(arrays, tmp_path / "w.pth")
    convert(source, tmp_path / "out", tiny_config_file(tmp_path, ONE_STAGE))
    for start in (source, str(tmp_path / "out")):
        variables, summary = initial_variables(ONE_STAGE, start)
        assert summary == (
            f"weights {start}: loaded backbone, roi_head.bbox_head.shared_fcs, rpn_head; random "
            "values for roi_head.bbox_head.fc_cls, roi_head.bbox_head.fc_reg; 4 classes in the "
            "weights, 3 in the config"
        )
        found, expected = flatten_dict(variables), expected_variables(arrays)
        assert found.keys() == expected.keys()
        for path, leaf in found.items():
            if "fc_cls" in path or "fc_reg" in path:
                assert leaf.shape[-1] in (4, 12)
                assert np.std(leaf) < 0.02
            else:
                np.testing.assert_array_equal(leaf, expected[path])


def test_the_same_number_of_classes_loads_everything(tmp_path: Path) -> None:
    arrays = one_stage_arrays(classes=3)
    source = save(arrays, tmp_path / "w.pth")
    variables, summary = initial_variables(ONE_STAGE, source)
    assert_equal(variables, arrays)
    assert "random" not in summary


@pytest.mark.parametrize("head", ["rpn_head", "bbox_head"])
def test_an_rpn_starts_a_faster_rcnn(head: str, tmp_path: Path) -> None:
    arrays = one_stage_arrays(classes=3)
    first = {key: array for key, array in arrays.items() if not key.startswith("roi_head.")}
    renamed = {key.replace("rpn_head.", f"{head}."): array for key, array in first.items()}
    source = save(renamed, tmp_path / "w.pth")
    variables, summary = initial_variables(ONE_STAGE, source)
    found, expected = flatten_dict(variables), expected_variables(first)
    assert found.keys() == expected_variables(arrays).keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array)
    assert "loaded backbone, rpn_head; random values for roi_head.bbox_head.fc_cls" in summary


def test_an_rpn_starts_from_a_folder_of_two_stages(tmp_path: Path) -> None:
    source = save(one_stage_arrays(classes=3), tmp_path / "w.pth")
    convert(source, tmp_path / "out", tiny_config_file(tmp_path, ONE_STAGE))
    rpn = replace(ONE_STAGE, model=replace(ONE_STAGE.model, roi=None))
    variables, summary = initial_variables(rpn, str(tmp_path / "out"))
    assert set(variables["params"]) == {"backbone", "rpn_head"}
    assert "not used: roi_head.bbox_head.fc_cls" in summary
    assert "random" not in summary


def test_an_incomplete_box_head_is_an_error(tmp_path: Path) -> None:
    arrays = one_stage_arrays(classes=3)
    del arrays["roi_head.bbox_head.shared_fcs.1.bias"]
    with pytest.raises(UserError, match=r"'roi_head\.bbox_head\.shared_fcs\.1\.bias' is missing"):
        initial_variables(ONE_STAGE, save(arrays, tmp_path / "w.pth"))


def test_layer4_of_a_backbone_file_fills_the_second_stage_of_c4() -> None:
    c4 = load_config("faster-rcnn_r50-caffe_c4-1x_coco")
    shapes = golden_shapes("torchvision_resnet50")
    match = match_config(match_keys(shapes, Path("w.pth")), c4)
    name = "roi_head.shared_head.layer4.2.bn3.running_var"
    assert match.sources[name] == "layer4.2.bn3.running_var"
    assert expected_shapes(c4, match) == {own: shapes[key] for own, key in match.sources.items()}


def test_a_published_file_with_other_pixels_gets_them_in_its_config(tmp_path: Path) -> None:
    url = NAMED_FILES["mmdetection://faster-rcnn_r101-caffe_fpn_ms-3x_coco"].url
    caffe = replace(
        TINY_TWO_STAGES,
        model=replace(
            TINY_TWO_STAGES.model, backbone=replace(TINY_TWO_STAGES.model.backbone, style="caffe")
        ),
        pixels=PixelConfig(order="bgr", mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0)),
    )
    for file, pixels in ((url.rpartition("/")[2], PixelConfig()), ("own.pth", caffe.pixels)):
        source = save(WEIGHTS, tmp_path / file)
        out = tmp_path / f"out-{file}"
        convert(source, out, tiny_config_file(tmp_path, caffe))
        assert load_config(out / "config.json").pixels == pixels
