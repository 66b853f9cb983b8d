"""Detection of a backbone's style, and the errors for the other style."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rpn_jax.config import Config, load_config
from rpn_jax.errors import UserError
from rpn_jax.weights.torch import convert, initial_variables
from rpn_jax.weights.torch.download import cache_path
from rpn_jax.weights.torch.match import match_keys
from rpn_jax.weights.torch.names import Shapes
from rpn_jax.weights.torch.published import NAMED_FILES
from rpn_jax.weights.torch.style import (
    DetectedStyle,
    check_style,
    detect_style,
    published_style,
    style_in_metadata,
    style_of_keys,
)
from rpn_jax.weights.torch.tables import Style
from tests.weights.torch.published import (
    TINY,
    TINY_CAFFE,
    caffe2_names,
    detectron2_names,
    filled,
    tensors,
    tiny_backbone_shapes,
    tiny_config_file,
    tiny_shapes,
)

FILE = Path("w.pth")
BACKBONE = filled(tiny_backbone_shapes(prefix=""))
AFFINE = {key: array for key, array in BACKBONE.items() if "running_" not in key}
TORCHVISION = "torchvision://resnet50"
CAFFE = "open-mmlab://detectron2/resnet50_caffe"


def found_of(keys: Shapes) -> tuple:
    match = match_keys(keys, FILE)
    return match.zoo, {name: keys[key] for name, key in match.sources.items()}


def shapes_of(arrays: dict) -> Shapes:
    return {key: array.shape for key, array in arrays.items()}


@pytest.mark.parametrize(
    ("arrays", "style"),
    [
        (BACKBONE, None),
        # The weights of torchvision are also published under these names.
        (detectron2_names(BACKBONE), None),
        (AFFINE, "caffe"),
        (detectron2_names(AFFINE), "caffe"),
        (caffe2_names(BACKBONE), "caffe"),
    ],
    ids=["torchvision", "detectron2", "affine", "affine detectron2", "Detectron"],
)
def test_style_of_a_resnet_s_keys(arrays: dict, style: Style | None) -> None:
    assert style_of_keys(*found_of(shapes_of(arrays))) == style


def test_keys_of_resnexts_detectors_and_group_norms_have_no_style() -> None:
    grouped = {**shapes_of(AFFINE), "layer1.0.conv2.weight": (128, 4, 3, 3)}
    assert style_of_keys(*found_of(grouped)) is None
    affine_detector = {key: tiny_shapes()[key] for key in tiny_shapes() if "running_" not in key}
    assert style_of_keys(*found_of(affine_detector)) is None
    group_norms = {key.replace("bn", "gn"): shape for key, shape in shapes_of(AFFINE).items()}
    assert style_of_keys(*found_of(group_norms)) is None


@pytest.mark.parametrize("name", NAMED_FILES)
def test_named_files_are_of_the_style_of_their_config(name: str) -> None:
    style = NAMED_FILES[name].style
    if name.startswith("mmdetection://"):
        config = load_config(name.removeprefix("mmdetection://"))
        assert config.model.backbone.style == style
    else:
        assert style == ("caffe" if "caffe" in name or "MSRA" in name else "pytorch")


@pytest.mark.parametrize(
    ("source", "style"),
    [
        (TORCHVISION, "pytorch"),
        (NAMED_FILES[TORCHVISION].url, "pytorch"),
        ("downloads/resnet50-0676ba61.pth", "pytorch"),
        (CAFFE, "caffe"),
        ("resnet50_msra-5891d200.pth", "caffe"),
        ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", "caffe"),
        ("torchvision/R-50.pkl", None),
        ("resnet50.pth", None),
    ],
)
def test_published_files_have_a_style_by_name_url_and_copy(
    source: str, style: Style | None
) -> None:
    assert published_style(source, source.rpartition("/")[2]) == style


@pytest.mark.parametrize(
    ("metadata", "style"),
    [
        ({}, None),
        ({"meta": {"config": "style='caffe'"}}, "caffe"),
        ({"meta": {"cfg": 'style="pytorch"'}}, "pytorch"),
        ({"meta": {"cfg": "style='caffe', style='pytorch'"}}, None),
    ],
)
def test_style_in_metadata(metadata: dict, style: Style | None) -> None:
    assert style_in_metadata(metadata) == style


def test_the_first_hint_determines_the_style() -> None:
    zoo, found = found_of(shapes_of(AFFINE))
    metadata = {"config": "style='pytorch'"}
    assert detect_style(CAFFE, FILE, zoo, found, metadata) == DetectedStyle(
        "caffe", "published name"
    )
    assert detect_style("w.pth", FILE, zoo, found, metadata) == DetectedStyle("pytorch", "metadata")
    assert detect_style("w.pth", FILE, zoo, found, {}) == DetectedStyle("caffe", "keys")
    assert detect_style("w.pth", FILE, *found_of(shapes_of(BACKBONE)), {}) is None


def test_basic_blocks_have_no_style() -> None:
    shallow = replace(TINY.model.backbone, depth=18)
    config = replace(TINY, model=replace(TINY.model, backbone=shallow))
    check_style(config, DetectedStyle("caffe", "keys"), FILE)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put small backbones into the cache in place of two named files, without comparing digits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("rpn_jax.weights.torch.download.compare_digits", lambda *_: "match")
    for name in (TORCHVISION, CAFFE):
        path = cache_path(NAMED_FILES[name].url)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(tensors(BACKBONE), path)


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize(
    ("source", "right", "wrong"), [(TORCHVISION, TINY, TINY_CAFFE), (CAFFE, TINY_CAFFE, TINY)]
)
def test_a_named_backbone_fits_its_style_only(
    source: str, right: Config, wrong: Config, tmp_path: Path
) -> None:
    style, other = right.model.backbone.style, wrong.model.backbone.style
    complaint = (
        rf"has the style '{style}' according to its published name, but config {wrong.name} "
        rf"has '{other}'"
    )
    with pytest.raises(UserError, match=complaint) as refusal:
        initial_variables(wrong, source)
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match=complaint):
        convert(source, tmp_path / "out", tiny_config_file(tmp_path, wrong))
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out", tiny_config_file(tmp_path, right))


@pytest.mark.usefixtures("cached")
def test_a_copy_under_another_name_fits_both_styles(tmp_path: Path) -> None:
    copy = tmp_path / "mine.pth"
    shutil.copy(cache_path(NAMED_FILES[TORCHVISION].url), copy)
    for config in (TINY, TINY_CAFFE):
        convert(str(copy), tmp_path / config.name, tiny_config_file(tmp_path, config))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (AFFINE, "style 'caffe' according to its keys, but config tiny has 'pytorch'"),
        (
            {"state_dict": filled(tiny_shapes()), "meta": {"config": "style='caffe'"}},
            "style 'caffe' according to its metadata, but config tiny has 'pytorch'",
        ),
    ],
    ids=["keys", "metadata"],
)
def test_a_file_of_the_other_style_is_an_error(
    content: dict, complaint: str, tmp_path: Path
) -> None:
    if "state_dict" in content:
        content = {**content, "state_dict": tensors(content["state_dict"])}
    else:
        content = tensors(content)
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=complaint):
        initial_variables(TINY, str(tmp_path / "w.pth"))
    convert(str(tmp_path / "w.pth"), tmp_path / "out", tiny_config_file(tmp_path, TINY_CAFFE))
