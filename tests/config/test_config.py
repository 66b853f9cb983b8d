"""Configs: values of the reference, values that are not allowed, Python and JSON files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rpn_jax.config import (
    AnchorConfig,
    Config,
    DataConfig,
    PixelConfig,
    RoIHeadConfig,
    Source,
    config_fields,
    config_names,
    load_config,
    replace,
    save_config,
)
from rpn_jax.data.shapes import KINDS
from rpn_jax.errors import UserError
from tests.reference_configs import (
    MULTI_SCALE,
    REFERENCE,
    REFERENCE_DETECTORS,
    REFERENCE_MULTI_SCALE,
    X101_32X8D,
)

CAFFE_PIXELS = PixelConfig(order="bgr", mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0))

C4 = "rpn_r50-caffe-c4_1x_coco"

VERSION_0_1 = Path(__file__).with_name("version_0_1")
"""Configs as version 0.1 saved them: format 1, without a `format` number."""

# (key, value that is not allowed, part of the error message that says what is allowed)
REFUSALS: list[tuple[str, Any, str]] = [
    ("model.backbone.depth", 51, "one of 18, 34, 50, 101, 152"),
    ("model.backbone.depth", 50.0, "one of 18, 34, 50, 101, 152"),
    ("model.backbone.style", "torch", "one of 'pytorch', 'caffe'"),
    ("model.backbone.groups", 0, "1 or more"),
    ("model.backbone.base_width", 0, "1 or more"),
    ("model.backbone.num_stages", 5, "1 to 4"),
    ("model.backbone.num_stages", 0, "1 to 4"),
    ("model.backbone.norm", "layer", "one of 'frozen', 'batch', 'group'"),
    ("model.backbone.train_norm", 1, "true or false"),
    ("model.backbone.frozen_stages", -2, "-1 to 4 (num_stages)"),
    ("model.backbone.frozen_stages", 5, "-1 to 4 (num_stages)"),
    ("model.rpn.anchors.strides", (), "one or more positive numbers"),
    ("model.rpn.anchors.scales", (8.0, 0.0), "one or more positive numbers"),
    ("model.rpn.anchors.ratios", (-1.0,), "one or more positive numbers"),
    ("model.backbone_class", "MyBackbone", "a module (without .py) and a class, such as"),
    ("model.neck", "pan", "one of 'fpn', 'none'"),
    ("model.neck_channels", 0, "1 or more"),
    ("model.rpn.channels", 0, "1 or more"),
    ("model.precision", "float16", "one of 'float32', 'tf32', 'bfloat16'"),
    ("pixels.order", "grb", "one of 'rgb', 'bgr'"),
    ("pixels.mean", (0.0, 0.0), "a tuple of 3 finite numbers"),
    ("pixels.std", (1.0, 0.0, 1.0), "positive"),
    ("rpn_loss.positive_iou", 1.1, "above 0, at most 1"),
    ("rpn_loss.negative_iou", 0, "above 0, at most 1"),
    ("rpn_loss.negative_iou", 0.8, "at most rpn_loss.positive_iou, 0.7"),
    ("rpn_loss.min_positive_iou", -0.1, "above 0, at most 1"),
    ("rpn_loss.samples_per_image", -1, "0 or more"),
    ("rpn_loss.positive_fraction", 2.0, "above 0, at most 1"),
    ("rpn_loss.inside_only", 1, "true or false"),
    ("model.backbone.dilate_last_stage", 1, "true or false"),
    ("model.roi.num_classes", 0, "1 or more"),
    ("model.roi.class_names", ("a", "b"), "80 different names"),
    ("model.roi.category_ids", (5, 7), "80"),
    ("model.roi.head", "conv", "one of 'fc', 'layer4'"),
    ("model.roi.channels", 0, "1 or more"),
    ("model.roi.pooled_size", 0, "1 or more"),
    ("roi_loss.nms_pre", 0, "1 or more"),
    ("roi_loss.max_proposals", 0, "1 to 100000"),
    ("roi_loss.positive_iou", 0.0, "above 0, at most 1"),
    ("roi_loss.samples_per_image", -1, "0 or more"),
    ("roi_loss.positive_fraction", 1.5, "above 0, at most 1"),
    ("roi_detections.min_score", 1.0, "0 to below 1"),
    ("roi_detections.nms_iou", -0.1, "0 to 1"),
    ("roi_detections.max_detections", 0, "1 to 100000"),
    ("rpn_proposals.nms_pre", 0, "1 or more"),
    ("rpn_proposals.nms_iou", 1.5, "0 to 1"),
    ("rpn_proposals.max_proposals", 0, "1 to 100000"),
    ("rpn_proposals.min_size", -1.0, "0 or more"),
    ("data.dataset", "darknet", "one of 'coco', 'voc', 'yolo', 'tfds', 'packed', 'shapes'"),
    ("data.scale", (800, 1333), "(long side, short side)"),
    ("data.scale", (10**9, 10**9), "(long side, short side), 1 to 16384"),
    ("data.buckets", ((800, 1333), (1344, 800)), "sizes with sides that are multiples of 32"),
    ("data.buckets", ((800, 1344), (32 * 10**9, 1344)), "multiples of 32, at most 16384"),
    ("data.buckets", ((800, 1344),), "sizes of which one holds 1333x800 (height x width)"),
    ("data.train_images", "a", "the folder of the pictures of data.train_annotations = ''"),
    ("data.eval_images", "a", "the folder of the pictures of data.eval_annotations = ''"),
    ("data.train_also", ("voc:data/VOC2007",), "FORMAT:ROOT:SPLIT"),
    (
        "data.train_also",
        ("cvat:data:train",),
        "FORMAT is one of coco, voc, yolo, tfds, packed, shapes",
    ),
    ("data.train_also", ("coco:a.json:",), "coco:FILE.json:PICTURES"),
    ("data.train_repeats", (1.0, 2.0), "one number for each training dataset (1 here)"),
    ("train.epochs", np.int64(3), "a whole number, of Python and not of NumPy: use .item()"),
    ("data.train_repeats", (0.0,), "one number for each training dataset (1 here)"),
    ("data.train_repeats", (1e9,), "one number for each training dataset (1 here)"),
    ("data.repeat_threshold", 1.5, "0 to 1"),
    ("data.class_map", ("a:b",), "OLD=NEW for each class, or one .toml or .json file"),
    ("data.class_map", ("a=",), "OLD=NEW for each class, or one .toml or .json file"),
    ("data.short_sides", (640, 801), "1 to 800, the short side of data.scale"),
    ("data.short_side_range", (800, 640), "two ascending numbers, 1 to 800, the short side of"),
    ("data.short_side_range", (640,), "two ascending numbers, 1 to 800, the short side of"),
    ("data.scale_jitter", (2.0, 0.1), "two ascending numbers above 0"),
    ("data.scale_jitter", (0.0, 2.0), "two ascending numbers above 0"),
    ("data.scale_jitter", (0.1, 1e9), "two ascending numbers above 0, at most 16"),
    ("data.crop_share", 0.0, "above 0, at most 1"),
    ("data.photometric_jitter", 1, "true or false"),
    ("data.batch_size", 0, "1 to 65536"),
    ("data.batch_size", 10**9, "1 to 65536"),
    ("data.on_bad_picture", "ignore", "one of 'error', 'skip'"),
    ("data.max_bad_pictures", -1, "0 or more"),
    ("data.eval_batch_size", -1, "0 to 65536"),
    ("data.eval_batch_size", 10**9, "0 to 65536"),
    ("data.flip_probability", 1.5, "0 to 1"),
    ("data.min_image_size", -1, "0 or more"),
    ("data.clip_boxes", "yes", "true or false"),
    ("data.loader_threads", -1, "0 to 1024"),
    ("data.loader_threads", 10**9, "0 to 1024"),
    ("data.resize", "gpu", "one of 'host', 'device'"),
    ("optim.learning_rate", 0.0, "above 0"),
    ("optim.learning_rate", float("nan"), "a finite number"),
    ("optim.momentum", 1.0, "0 to below 1"),
    ("optim.weight_decay", -1e-4, "0 or more"),
    ("optim.warmup_steps", -1, "0 or more"),
    ("optim.warmup_ratio", 0.0, "above 0, at most 1"),
    ("optim.decay_epochs", (11, 8), "epochs from 1 in ascending order"),
    ("optim.decay_epochs", (0, 8), "epochs from 1 in ascending order"),
    ("optim.decay_factor", 0.0, "above 0, at most 1"),
    ("optim.base_batch_size", 0, "1 or more"),
    ("optim.auto_scale_lr", 1, "true or false"),
    ("optim.clip_norm", -1.0, "0 or more"),
    ("train.epochs", 0, "1 or more"),
    ("train.seed", 2**32, "0 to 2**32 - 1"),
    ("train.eval_every", -1, "0 or more"),
    ("train.log_every", 0, "1 or more"),
    ("train.save_every_steps", -1, "0 or more"),
    ("train.save_every_minutes", -0.5, "0 or more"),
    ("train.keep_last", 0, "1 or more"),
    ("train.gradient_parts", 0, "1 or more"),
    ("train.ema_decay", 1.0, "0 or more, below 1"),
    ("train.patience", -1, "0 or more"),
    ("train.profile_steps", -1, "0 or more"),
]
FREE_TEXTS = {
    "name",
    "data.root",
    "data.tfds_name",
    "data.train_classes",
    "data.eval_classes",
    "data.train_split",
    "data.eval_split",
    "train.init_weights",
    "data.train_annotations",
    "data.eval_annotations",
}
TWO_STAGES = replace(Config(), model=replace(Config().model, roi=RoIHeadConfig()))


def with_value(config: Any, key: str, value: object) -> Any:
    """Return a copy of ``config`` in which the field with the dotted ``key`` is replaced."""
    head, _, rest = key.partition(".")
    return replace(
        config, **{head: with_value(getattr(config, head), rest, value) if rest else value}
    )


def test_the_package_has_the_configs_of_the_reference_and_two_small_ones() -> None:
    assert set(config_names()) == {
        *REFERENCE,
        *REFERENCE_DETECTORS,
        *REFERENCE_MULTI_SCALE,
        *("rpn_r18_fpn_gn_small", "rpn_demo"),
        *("faster-rcnn_r18_fpn_gn_small", "faster-rcnn_demo"),
    }


@pytest.mark.parametrize("name", config_names())
def test_a_config_has_the_name_of_its_file(name: str) -> None:
    assert load_config(name).name == name


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_configs_have_the_values_of_the_reference(name: str) -> None:
    depth, groups, base_width, style, train_norm, epochs = REFERENCE[name]
    config = load_config(name)
    backbone = config.model.backbone
    assert (backbone.depth, backbone.groups, backbone.base_width) == (depth, groups, base_width)
    assert (backbone.style, backbone.train_norm) == (style, train_norm)
    assert (backbone.norm, backbone.frozen_stages) == ("frozen", 1)
    assert config.pixels == (CAFFE_PIXELS if style == "caffe" else PixelConfig())
    assert config.train.epochs == epochs
    assert config.optim.decay_epochs == {12: (8, 11), 24: (16, 22)}[epochs]
    assert (config.optim.learning_rate, config.data.batch_size) == (0.02, 16)
    assert config.data.scale == (1333, 800)


@pytest.mark.parametrize("name", [name for name in REFERENCE if name != C4])
def test_pyramid_configs_have_five_levels(name: str) -> None:
    config = load_config(name)
    assert (config.model.neck, config.model.rpn.channels) == ("fpn", 256)
    assert config.model.rpn.anchors == AnchorConfig((4, 8, 16, 32, 64), (8.0,), (0.5, 1.0, 2.0))
    assert (config.rpn_proposals.nms_pre, config.rpn_proposals.max_proposals) == (2000, 1000)


def test_c4_has_one_level_of_stride_16() -> None:
    config = load_config(C4)
    assert (config.model.neck, config.model.rpn.channels) == ("none", 1024)
    assert config.model.backbone.num_stages == 3
    assert config.model.rpn.anchors.strides == (16,)
    assert config.model.rpn.anchors.scales == (2, 4, 8, 16, 32)
    assert config.model.rpn.anchors.per_cell == 15
    assert (config.rpn_proposals.nms_pre, config.rpn_proposals.max_proposals) == (12000, 2000)


def test_the_small_config_trains_every_parameter_of_a_group_normed_resnet18() -> None:
    config = load_config("rpn_r18_fpn_gn_small")
    backbone = config.model.backbone
    assert (backbone.depth, backbone.norm, backbone.frozen_stages) == (18, "group", -1)
    assert (config.data.scale, config.data.batch_size) == ((320, 240), 4)
    assert (config.data.train_split, config.data.eval_split) == ("train", "test")
    assert (config.optim.learning_rate, config.optim.base_batch_size) == (0.01, 4)
    assert (config.optim.warmup_steps, config.train.epochs) == (100, 12)


@pytest.mark.parametrize(("key", "value", "wanted"), REFUSALS)
def test_the_error_for_a_wrong_value_names_the_key_and_the_allowed_values(
    key: str, value: object, wanted: str
) -> None:
    with pytest.raises(UserError) as refusal:
        with_value(TWO_STAGES, key, value)
    message = str(refusal.value)
    assert message.startswith(f"{key} = {value!r}: must be ")
    assert wanted in message
    assert "\n" not in message


@pytest.mark.parametrize(("groups", "fits"), [(1, False), (8, True)])
def test_group_norm_needs_widths_in_multiples_of_its_groups(groups: int, fits: bool) -> None:
    backbone = replace(Config().model.backbone, groups=groups, base_width=4)
    if fits:
        assert replace(backbone, norm="group").norm == "group"
        return
    with pytest.raises(UserError, match=r"base_width = 4: must be .* multiples of 32") as refusal:
        replace(backbone, norm="group")
    assert "[4, 8, 16, 32] channels" in str(refusal.value)


def test_every_field_has_a_value_in_refusals() -> None:
    assert set(config_fields(TWO_STAGES)) - FREE_TEXTS == {key for key, _, _ in REFUSALS}


@pytest.mark.parametrize("key", config_fields(TWO_STAGES))
def test_the_error_for_a_value_of_another_type_names_the_key(key: str) -> None:
    with pytest.raises(UserError, match=rf"^{key} = None: must be "):
        with_value(TWO_STAGES, key, None)


def test_a_second_stage_of_another_type_is_refused() -> None:
    with pytest.raises(UserError, match=r"^model\.roi = 3: must be .*RoIHeadConfig"):
        with_value(Config(), "model.roi", 3)


def test_class_names_follow_the_number_of_classes_unless_they_are_given() -> None:
    coco = RoIHeadConfig()
    assert (coco.num_classes, coco.class_names[0], coco.class_names[79]) == (
        80,
        "person",
        "toothbrush",
    )
    assert replace(coco, num_classes=2).class_names == ("class 1", "class 2")
    assert replace(coco, num_classes=2, class_names=("a", "b")).class_names == ("a", "b")
    with pytest.raises(UserError, match="must be 3 different names"):
        RoIHeadConfig(num_classes=3, class_names=("a", "b"))


def test_the_head_layer4_needs_three_stages_and_no_neck() -> None:
    with pytest.raises(UserError, match=r"^model\.roi\.head = 'layer4': must be 'fc', unless"):
        with_value(TWO_STAGES, "model.roi.head", "layer4")


@pytest.mark.parametrize("name", REFERENCE_DETECTORS)
def test_detectors_extend_the_rpn_of_their_backbone(name: str) -> None:
    config = load_config(name)
    has_pyramid = "_fpn_" in name
    rpn = load_config(name.replace("faster-rcnn", "rpn") if has_pyramid else C4)
    assert config.model.roi is not None
    assert (config.model.roi.num_classes, config.model.roi.pooled_size) == (80, 7)
    assert (config.data, config.optim, config.train) == (rpn.data, rpn.optim, rpn.train)
    assert config.pixels == rpn.pixels
    proposals = config.rpn_proposals
    assert (proposals.nms_pre, proposals.max_proposals) == (1000 if has_pyramid else 6000, 1000)
    loss = config.roi_loss
    assert (loss.nms_pre, loss.max_proposals) == ((2000, 1000) if has_pyramid else (12000, 2000))
    assert (loss.positive_iou, loss.samples_per_image, loss.positive_fraction) == (0.5, 512, 0.25)
    detections = config.roi_detections
    assert (detections.min_score, detections.nms_iou, detections.max_detections) == (0.05, 0.5, 100)


@pytest.mark.parametrize("name", MULTI_SCALE)
def test_multi_scale_configs_differ_in_the_sizes_and_the_schedule(name: str) -> None:
    base_name, short_sides, epochs, decay_epochs = MULTI_SCALE[name]
    config, base = (load_config(f"faster-rcnn_{each}_coco") for each in (name, base_name))
    assert config.data.drawn_short_sides == short_sides
    assert (config.data.scale, config.data.canvases) == (base.data.scale, base.data.canvases)
    assert (config.train.epochs, config.optim.decay_epochs) == (epochs, decay_epochs)
    is_repeated = len(short_sides) > 6
    assert config.train.eval_every == (3 if is_repeated else 1)
    # The reference combines this backbone of the style 'caffe' with the pixels of 'pytorch'.
    pixels = PixelConfig() if name == "r101-caffe_fpn_ms-3x" else base.pixels
    same = {
        "name": config.name,
        "data": replace(base.data, short_sides=config.data.short_sides),
        "optim": replace(base.optim, decay_epochs=decay_epochs),
        "train": config.train,
        "pixels": pixels,
    }
    data = replace(config.data, short_side_range=())
    assert replace(config, data=data) == replace(base, **same)


def test_the_multi_scale_config_of_32x8d_has_wider_groups_and_the_pixels_of_caffe2() -> None:
    config = load_config(X101_32X8D)
    base = load_config("faster-rcnn_x101-32x4d_fpn_ms-3x_coco")
    backbone = config.model.backbone
    assert (backbone.groups, backbone.base_width, backbone.train_norm) == (32, 8, False)
    assert (config.data, config.optim, config.train) == (base.data, base.optim, base.train)
    assert config.pixels.order == "bgr"
    assert config.pixels.std == PixelConfig().std[::-1]


def test_only_dc5_uses_dilation_and_only_inside_anchors() -> None:
    for name in REFERENCE_DETECTORS:
        config = load_config(name)
        is_dc5 = "dc5" in name
        assert config.model.backbone.dilate_last_stage is is_dc5
        assert config.rpn_loss.inside_only is is_dc5


def test_the_demo_detector_has_the_classes_of_the_shapes() -> None:
    roi = load_config("faster-rcnn_demo").model.roi
    assert roi is not None
    assert roi.class_names == KINDS


@pytest.mark.parametrize("depth", [18, 34])
def test_shallow_networks_have_no_groups(depth: int) -> None:
    with pytest.raises(UserError, match=rf"backbone\.groups = 32: must be 1, .* at depth {depth}"):
        with_value(with_value(Config(), "model.backbone.depth", depth), "model.backbone.groups", 32)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rpn_proposals.nms_iou", 0.0),
        ("rpn_proposals.nms_iou", 1.0),
        ("rpn_loss.samples_per_image", 0),
        ("rpn_loss.negative_iou", 0.7),
        ("optim.momentum", 0.0),
        ("optim.decay_epochs", ()),
        ("optim.learning_rate", 1),
        ("data.flip_probability", 1.0),
        ("train.eval_every", 0),
        ("train.seed", 2**32 - 1),
    ],
)
def test_the_ends_of_a_range_are_allowed(key: str, value: object) -> None:
    with_value(TWO_STAGES, key, value)


@pytest.mark.parametrize("name", config_names())
def test_a_saved_config_loads_unchanged(name: str, tmp_path: Path) -> None:
    config = with_value(load_config(name), "optim.learning_rate", 0.1 + 0.2)
    path = tmp_path / "config.json"
    save_config(config, path)
    assert load_config(path) == config
    assert load_config(str(path)) == config


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{", "is not JSON"),
        ("[]", "the file is not a JSON object"),
        ('{"modle": {}}', "unknown key 'modle'; did you mean 'model'?"),
        (
            '{"optim": {"learning_rat": 1}}',
            "unknown key 'optim.learning_rat'; did you mean 'learning_rate'?",
        ),
        ('{"data": 3}', "'data' is not a JSON object"),
        ('{"optim": {"momentum": 2}}', "optim.momentum = 2: must be 0 to below 1"),
        ('{"train": {"epochs": "12"}}', "train.epochs = '12': must be a whole number"),
        ('{"data": {"scale": [9]}}', "data.scale = (9,): must be a tuple of 2 whole numbers"),
        (
            '{"data": {"buckets": [9]}}',
            "data.buckets = (9,): must be a tuple of tuples of 2 whole numbers",
        ),
        ('{"data": {"train_also": [9]}}', "data.train_also = (9,): must be a tuple of strings"),
        ('{"model": {"roi": "none"}}', "'model.roi' is not a JSON object"),
    ],
)
def test_a_wrong_json_config_is_an_error_of_one_line(
    text: str, wanted: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError) as refusal:
        load_config(path)
    assert wanted in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_fields_that_are_missing_in_json_have_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"train": {"epochs": 3}}))
    assert load_config(path) == with_value(Config(), "train.epochs", 3)


def test_norm_batch_needs_the_whole_batch() -> None:
    config = with_value(Config(), "train.gradient_parts", 2)
    with pytest.raises(UserError, match=r"^train\.gradient_parts = 2: must be 1 with model\."):
        with_value(config, "model.backbone.norm", "batch")


CHANGED_SINCE_0_1: dict[str, dict[str, object]] = {
    "rpn_demo": {
        "data.scale": (160, 128),
        "data.batch_size": 4,
        "optim.base_batch_size": 4,
        "optim.decay_factor": 0.1,
        "train.ema_decay": 0.0,
    }
}
"""Fields of configs whose values in version 0.1 were others than today's."""

CHANGED_DEFAULTS: dict[str, object] = {"data.eval_batch_size": 8, "data.loader_threads": 4}
"""Fields whose values in all configs of version 0.1 were others than today's."""


@pytest.mark.parametrize("path", sorted(VERSION_0_1.glob("*.json")), ids=lambda path: path.stem)
def test_configs_of_version_0_1_load(path: Path) -> None:
    expected = load_config(path.stem)
    for key, value in {**CHANGED_DEFAULTS, **CHANGED_SINCE_0_1.get(path.stem, {})}.items():
        expected = with_value(expected, key, value)
    assert load_config(path) == expected


@pytest.mark.parametrize("number", [0, 3, "2", None])
def test_an_unknown_format_is_an_error(number: object, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"format": number}))
    with pytest.raises(UserError, match=r"format = .*: must be 1 to 2\. A newer version"):
        load_config(path)


def test_a_missing_json_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: cannot be read \(No such file"):
        load_config(tmp_path / "absent.json")


@pytest.mark.parametrize("value", [5, None, Config()])
def test_a_config_is_named_by_a_text_or_a_path(value: Any) -> None:
    kind = type(value).__name__
    with pytest.raises(UserError, match=rf"^config: is of type {kind}: must be a name or a path$"):
        load_config(value)


def test_a_python_config_at_any_path_loads(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from rpn_jax.config import load_config, replace\n"
        'CONFIG = replace(load_config("rpn_demo"), name="mine")\n'
    )
    assert load_config(path) == replace(load_config("rpn_demo"), name="mine")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "defines no CONFIG of type rpn_jax.config.Config"),
        ("CONFIG = {}", "defines no CONFIG of type rpn_jax.config.Config"),
        ("CONFIG = (", "fails with SyntaxError: "),
        ("import sys\nsys.exit(3)", "fails in line 2 with SystemExit: 3"),
        (
            "from rpn_jax.config import Config\nCONFIG = Config(lr=1)",
            "fails in line 2 with TypeError: ",
        ),
        (
            "from rpn_jax.config import TrainConfig\nCONFIG = TrainConfig(epochs=0)",
            "train.epochs = 0: must be 1 or more",
        ),
    ],
)
def test_a_wrong_python_config_is_an_error_of_one_line(
    text: str, wanted: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError) as refusal:
        load_config(path)
    assert wanted in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_python_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.py: no such file"):
        load_config(tmp_path / "absent.py")


def test_an_unreadable_python_config_is_an_error(
    tmp_path: Path, forbid: Callable[[Path], None]
) -> None:
    forbid(tmp_path)
    with pytest.raises(UserError, match=r"mine\.py: cannot be read \(Permission denied\)$"):
        load_config(tmp_path / "mine.py")


def test_the_error_for_an_unknown_name_lists_the_nearest_and_all_names() -> None:
    with pytest.raises(UserError) as refusal:
        load_config("rpn_r50_fpn_1x")
    message = str(refusal.value)
    assert "config 'rpn_r50_fpn_1x'" in message
    assert "did you mean 'rpn_r50_fpn_1x_coco'?" in message
    assert all(name in message for name in config_names())


@pytest.mark.parametrize(
    ("scale", "canvases"),
    [
        ((1333, 800), ((800, 1088), (1088, 800), (800, 1344), (1344, 800))),
        ((640, 480), ((480, 640), (640, 480))),
        ((320, 240), ((256, 320), (320, 256))),
        ((64, 64), ((64, 64),)),
    ],
)
def test_canvases_follow_from_the_scale(scale, canvases) -> None:
    data = DataConfig(scale=scale)
    assert data.canvases == canvases
    assert replace(data, buckets=((1344, 1344),)).canvases == ((1344, 1344),)


def test_short_sides_are_a_list_or_a_range() -> None:
    assert DataConfig(short_sides=(640, 800)).drawn_short_sides == (640, 800)
    assert DataConfig(short_side_range=(798, 800)).drawn_short_sides == (798, 799, 800)
    with pytest.raises(UserError, match=r"short_side_range = \(640, 800\): must be empty if"):
        DataConfig(short_sides=(640,), short_side_range=(640, 800))


def test_more_datasets_are_read_from_their_text() -> None:
    data = DataConfig(
        root="a",
        train_split="train",
        train_also=(
            "voc:b:c/VOC2007:trainval",
            "coco:x.json:pixels",
            "tfds:t:voc/2007:train[:8]",
        ),
    )
    assert data.train_sources == (
        Source("coco", "a", "coco/2017", "train"),
        Source("voc", "b:c/VOC2007", "", "trainval"),
        Source("coco", "", "", "", "x.json", "pixels"),
        Source("tfds", "t", "voc/2007", "train[:8]"),
    )
    assert data.train_name == "train and " + " and ".join(data.train_also)
