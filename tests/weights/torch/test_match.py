"""Matching of keys in every zoo, and the choice of a config."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rpn_jax.config import load_config
from rpn_jax.errors import UserError
from rpn_jax.weights.torch.match import (
    KeyMatch,
    assumed_statistics,
    choose_config,
    describe,
    differences,
    expected_shapes,
    fits,
    match_config,
    match_keys,
)
from rpn_jax.weights.torch.names import Shapes
from rpn_jax.weights.torch.published import NAMED_FILES
from rpn_jax.weights.torch.style import DetectedStyle
from rpn_jax.weights.torch.tables import ZOOS
from tests.reference_configs import ELEVEN
from tests.weights.torch.published import (
    TINY,
    caffe2_names,
    detectron2_names,
    golden_shapes,
    tiny_backbone_shapes,
    tiny_shapes,
)

FILE = Path("w.pth")
ZOO = {zoo.name.split()[0]: zoo for zoo in ZOOS}


def no_counters(shapes: Shapes) -> Shapes:
    return {key: shapes[key] for key in shapes if not key.endswith("num_batches_tracked")}


def found_shapes(match: KeyMatch, shapes: Shapes) -> Shapes:
    return {name: shapes[key] for name, key in match.sources.items()}


@pytest.mark.parametrize("name", ELEVEN)
def test_configs_need_exactly_the_keys_of_the_reference(name: str) -> None:
    shapes = golden_shapes(name)
    match = match_keys(shapes, FILE)
    assert expected_shapes(load_config(name), match) == no_counters(shapes)


def test_the_tiny_config_needs_the_shapes_of_tiny_shapes() -> None:
    match = match_keys(tiny_shapes(), FILE)
    assert expected_shapes(TINY, match) == no_counters(tiny_shapes())


@pytest.mark.parametrize("head", ["rpn_head", "bbox_head"])
def test_mmdetection_2_and_3(head: str) -> None:
    keys = [key.replace("rpn_head", head) for key in tiny_shapes()]
    match = match_keys(keys, FILE)
    assert match.zoo is ZOO["MMDetection"]
    assert set(match.sources) == set(no_counters(tiny_shapes()))
    assert match.sources["rpn_head.rpn_cls.bias"] == f"{head}.rpn_cls.bias"
    assert set(match.left_out) == {key for key in keys if key.endswith("num_batches_tracked")}


def test_a_file_with_both_names_of_the_head_is_an_error() -> None:
    keys = [*tiny_shapes(), "bbox_head.rpn_cls.bias"]
    with pytest.raises(UserError, match=r"both mean 'rpn_head\.rpn_cls\.bias'"):
        match_keys(keys, FILE)


def test_two_stage_file_of_the_reference() -> None:
    shapes = golden_shapes("faster-rcnn_r50_fpn_1x_coco")
    match = match_keys(shapes, FILE)
    for config in ("rpn_r50_fpn_1x_coco", "faster-rcnn_r50_fpn_1x_coco"):
        assert fits(load_config(config), match, found_shapes(match, shapes))
    match = match_config(match, load_config("rpn_r50_fpn_1x_coco"))
    second = {key: match.left_out[key] for key in match.left_out if key.startswith("roi_head.")}
    assert len(second) == 8
    assert all("second stage" in reason for reason in second.values())


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("roi_head.bbox_head.0.fc_cls.weight", "second stage"),
        ("roi_head.mask_head.convs.0.conv.weight", "second stage"),
        ("bbox_head.fc_cls.weight", "second stage"),
        ("mask_head.convs.0.conv.weight", "second stage"),
        ("ema_backbone_layer1_0_conv1_weight", "EMA hook"),
        ("data_preprocessor.mean", "pixel normalisation"),
    ],
)
def test_other_keys_of_mmdetection_are_left_out_with_a_reason(key: str, word: str) -> None:
    match = match_keys([*tiny_shapes(), key], FILE)
    assert word in match.left_out[key]
    assert set(match.sources) == set(no_counters(tiny_shapes()))


def test_an_unknown_key_is_not_left_out() -> None:
    shapes = {**tiny_shapes(), "rpn_head.rpn_dir.weight": (1,)}
    match = match_keys(shapes, FILE)
    assert not match.left_out.keys() & {"rpn_head.rpn_dir.weight"}
    assert match.sources["rpn_head.rpn_dir.weight"] == "rpn_head.rpn_dir.weight"
    assert not fits(TINY, match, found_shapes(match, shapes))


@pytest.mark.parametrize(
    ("keys", "config", "words"),
    [
        ("torchvision_resnet50", "rpn_r50_fpn_1x_coco", "ResNet-50 of 4 stages with batch norm"),
        ("torchvision_resnet101", "rpn_r101_fpn_2x_coco", "ResNet-101 of 4 stages"),
        ("openmmlab_resnext101_32x4d", "rpn_x101-32x4d_fpn_1x_coco", "ResNeXt-101 32x4d"),
        ("openmmlab_resnext101_64x4d", "rpn_x101-64x4d_fpn_1x_coco", "ResNeXt-101 64x4d"),
    ],
)
def test_imagenet_backbones(keys: str, config: str, words: str) -> None:
    shapes = golden_shapes(keys)
    match = match_keys(shapes, FILE)
    found = found_shapes(match, shapes)
    assert match.zoo is ZOO["torchvision"]
    assert fits(load_config(config), match, found)
    assert not fits(load_config("rpn_r18_fpn_gn_small"), match, found)
    assert words in describe(found)
    assert {key for key in match.left_out if "fc" in key} == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(("name", "words"), [("18", "ResNet-18"), ("34", "ResNet-34")])
def test_basic_blocks_are_recognised(name: str, words: str) -> None:
    shapes = golden_shapes(f"torchvision_resnet{name}")
    assert describe(found_shapes(match_keys(shapes, FILE), shapes)).startswith(words)


def test_bias_before_a_norm_is_left_out() -> None:
    keys = list(tiny_backbone_shapes(prefix=""))
    biases = ["conv1.bias", "layer1.0.conv2.bias", "layer1.0.downsample.0.bias"]
    match = match_keys([*keys, *biases], FILE)
    assert [match.left_out[key] for key in biases] == [match.left_out["conv1.bias"]] * 3
    assert "layer1.0.downsample.1.bias" in match.sources.values()


@pytest.mark.parametrize(
    ("rename", "zoo"), [(caffe2_names, "Detectron"), (detectron2_names, "detectron2")]
)
def test_detectron_and_detectron2_backbones(rename, zoo: str) -> None:
    names = no_counters(tiny_backbone_shapes(prefix=""))
    # Each array holds a different number, so a wrong renaming is detected.
    numbered = {key: np.full(1, number) for number, key in enumerate(names)}
    renamed = rename(numbered)
    match = match_keys(renamed, FILE)
    assert match.zoo is ZOO[zoo]
    assert not match.left_out
    for name, key in match.sources.items():
        assert renamed[key] is numbered[name.removeprefix("backbone.")], (name, key)
    assert len(match.sources) == len(renamed)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("res2_0_branch2a_bn_gamma", "backbone.layer1.0.bn1.weight"),
        ("res5_2_branch2c_bn_beta", "backbone.layer4.2.bn3.bias"),
        ("res4_22_branch2b_bn_running_mean", "backbone.layer3.22.bn2.running_mean"),
        ("res3_0_branch1_bn_running_var", "backbone.layer2.0.downsample.1.running_var"),
        ("res3_0_branch1_bn_rm", "backbone.layer2.0.downsample.1.running_mean"),
        ("res_conv1_bn_riv", "backbone.bn1.running_var"),
    ],
)
def test_all_names_of_norms_in_detectron(name: str, key: str) -> None:
    assert match_keys(["conv1_w", "res2_0_branch2a_w", name], FILE).sources[key] == name


def test_detectrons_classifier_momentum_and_biases_are_left_out() -> None:
    keys = ["fc1000_w", "pred_b", "conv1_w_momentum", "conv1_b", "res2_0_branch2a_b"]
    match = match_keys(["conv1_w", "res2_0_branch2a_w", *keys], FILE)
    assert list(match.left_out) == keys


def test_the_error_for_an_unknown_zoo_names_keys() -> None:
    with pytest.raises(UserError, match=r"'features\.0\.weight'.*known: MMDetection"):
        match_keys(["features.0.weight", "features.0.bias"], FILE)


def test_statistics_are_assumed_only_if_a_backbone_file_holds_none() -> None:
    names = {
        key: key
        for key in no_counters(tiny_backbone_shapes())
        if not key.endswith(("running_mean", "running_var"))
    }
    backbone = KeyMatch(ZOO["Detectron"], names, {})
    wanted = expected_shapes(TINY, backbone)
    assumed = assumed_statistics(backbone, wanted)
    assert {**names, **assumed}.keys() == wanted.keys()
    assert assumed["backbone.bn1.running_mean"] == 0.0
    assert assumed["backbone.bn1.running_var"] == 1.0

    one_norm_has_some = KeyMatch(ZOO["Detectron"], {**names, "backbone.bn1.running_var": "x"}, {})
    assert assumed_statistics(one_norm_has_some, wanted) == {}
    detector = KeyMatch(ZOO["MMDetection"], names, {})
    assert assumed_statistics(detector, expected_shapes(TINY, detector)) == {}


def test_extra_stages_are_left_out_of_backbone_files_only() -> None:
    shapes = {**tiny_backbone_shapes(prefix=""), "layer3.0.conv1.weight": (256, 512, 1, 1)}
    match = match_config(match_keys(shapes, FILE), TINY)
    assert match.left_out["layer3.0.conv1.weight"] == "the config's backbone ends after stage 2"
    assert fits(TINY, match_keys(shapes, FILE), found_shapes(match_keys(shapes, FILE), shapes))

    detector = {**tiny_shapes(), "backbone.layer3.0.conv1.weight": (256, 512, 1, 1)}
    match = match_keys(detector, FILE)
    assert not fits(TINY, match, found_shapes(match, detector))


def choose(shapes: Shapes, file: str, detected: DetectedStyle | None = None) -> tuple[str, str]:
    match = match_keys(shapes, Path(file))
    found = found_shapes(match, shapes)
    config, chosen_by = choose_config(match, found, detected, Path(file))
    return config.name, chosen_by


@pytest.mark.parametrize("name", ["rpn_r50-caffe_fpn_1x_coco", "rpn_r50_fpn_2x_coco"])
@pytest.mark.parametrize("ending", ["_20200131-0728c9b3.pth", ".pth", "-0728c9b3.pth"])
def test_published_file_names_choose_the_config(name: str, ending: str) -> None:
    assert choose(golden_shapes(name), name.replace("-", "_") + ending) == (name, "file name")


@pytest.mark.parametrize(
    ("keys", "config"),
    [
        ("faster-rcnn_r50_fpn_1x_coco", "faster-rcnn_r50_fpn_1x_coco"),
        ("torchvision_resnet50", "rpn_r50_fpn_1x_coco"),
    ],
)
def test_a_detected_style_chooses_the_config(keys: str, config: str) -> None:
    detected = DetectedStyle("pytorch", "metadata")
    assert choose(golden_shapes(keys), "x.pth", detected) == (config, "metadata")


def test_the_caffe_style_chooses_among_detectors() -> None:
    detected = DetectedStyle("caffe", "keys")
    shapes = golden_shapes("faster-rcnn_r50_fpn_1x_coco")
    assert choose(shapes, "x.pth", detected) == ("faster-rcnn_r50-caffe_fpn_1x_coco", "keys")


def test_the_error_for_an_ambiguous_file_names_the_configs() -> None:
    with pytest.raises(UserError, match=r"--config \(.*rcnn_r50-caffe_fpn.*rcnn_r50_fpn_1x"):
        choose(golden_shapes("faster-rcnn_r50_fpn_1x_coco"), "epoch_12.pth")
    resnext = golden_shapes("openmmlab_resnext101_32x4d")
    assert choose(resnext, "x.pth") == ("rpn_x101-32x4d_fpn_1x_coco", "shapes")


def test_the_error_for_an_unknown_architecture_describes_it() -> None:
    with pytest.raises(UserError, match=r"holds ResNet-50 of 2 stages.*FPN, 3 anchors.*--config"):
        choose(tiny_shapes(), "tiny.pth")


def test_named_files_use_https_and_have_digits_except_detectron2s() -> None:
    from rpn_jax.weights.torch.download import digits_in_name

    for name, file in NAMED_FILES.items():
        assert file.url.startswith("https://")
        assert (digits_in_name(file.url) is None) == name.startswith("detectron2://")


def test_a_missing_tensor_is_named_with_the_nearest_config() -> None:
    shapes = golden_shapes("rpn_r101_fpn_1x_coco")
    del shapes["backbone.layer3.22.conv2.weight"]
    match = match_keys(shapes, FILE)
    for file, nearest in (
        (FILE, "rpn_r101_fpn_1x_coco"),
        (Path("rpn_r101_fpn_2x_coco_20200131-24e3db1a.pth"), "rpn_r101_fpn_2x_coco"),
    ):
        wanted = (
            rf"no config of this package fits\. The nearest is {nearest}, but "
            r"backbone\.layer3\.22\.conv2\.weight is missing\. Give your own config"
        )
        with pytest.raises(UserError, match=wanted):
            choose_config(match, found_shapes(match, shapes), None, file)


def test_differences_name_strange_keys_and_other_shapes() -> None:
    shapes = {**tiny_shapes(), "rpn_head.rpn_dir.weight": (1,), "rpn_head.rpn_cls.bias": (99,)}
    match = match_keys(shapes, FILE)
    wanted = tiny_shapes()["rpn_head.rpn_cls.bias"]
    assert differences(TINY, match, found_shapes(match, shapes)) == [
        "rpn_head.rpn_dir.weight is not used",
        f"rpn_head.rpn_cls.bias has the shape (99,) instead of {wanted}",
    ]
