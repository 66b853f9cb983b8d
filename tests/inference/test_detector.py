"""Named boxes from pictures: in Python, and by the verb `detect`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

import rpn_jax
from rpn_jax import commands
from rpn_jax.config import Config, RoIHeadConfig, load_config
from rpn_jax.data.shapes import Shapes
from rpn_jax.errors import UserError
from rpn_jax.inference import command, drawings
from rpn_jax.structures import Variables
from rpn_jax.weights.folders import save_variables

CLASSES = Shapes("eval").class_names
CATEGORY_IDS = tuple(range(11, 11 + len(CLASSES)))


@pytest.fixture(scope="module")
def config(tiny_config: Config) -> Config:
    roi = RoIHeadConfig(len(CLASSES), CLASSES, CATEGORY_IDS, channels=16, pooled_size=3)
    settings = replace(tiny_config.rpn_proposals, nms_pre=50, max_proposals=20)
    return replace(
        tiny_config,
        name="tiny detector",
        model=replace(tiny_config.model, roi=roi),
        rpn_proposals=settings,
        roi_detections=replace(tiny_config.roi_detections, max_detections=30),
    )


@pytest.fixture(scope="module")
def variables(config: Config) -> Variables:
    return jax.device_get(rpn_jax.init_variables(config, seed=1))


@pytest.fixture(scope="module")
def weights(config: Config, variables: Variables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "detector"
    save_variables(folder, config, variables)
    return folder


@pytest.fixture(scope="module")
def detector(weights: Path) -> rpn_jax.Detector:
    return rpn_jax.Detector.load(weights)


def test_a_detector_knows_its_classes(detector: rpn_jax.Detector) -> None:
    assert detector.class_names == CLASSES
    assert detector.category_ids == CATEGORY_IDS


def test_a_detector_gives_the_boxes_of_the_stages_called_one_by_one(
    config: Config, variables: Variables, detector: rpn_jax.Detector
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    canvas = np.zeros((1, 64, 64, 3), np.uint8)
    canvas[0, :, :48] = picture
    sizes = np.array([[64, 48]], np.int32)
    model = rpn_jax.FasterRCNN(config.model)

    @jax.jit
    def stages(canvas: jax.Array) -> rpn_jax.Detections:
        images = rpn_jax.normalize_images(canvas, sizes, config.pixels)
        levels = model.apply(variables, images, method="features")
        outputs = model.apply(variables, levels, method="rpn_outputs")
        proposals = rpn_jax.propose(config, outputs, sizes)
        roi = model.apply(variables, levels, proposals.boxes, method="roi_outputs")
        return rpn_jax.detect(config, roi, proposals.boxes, proposals.valid, sizes)

    expected = jax.device_get(stages(canvas))
    [found] = detector([picture])
    count = int(expected.valid.sum())
    assert count > 0
    assert found.image_id == 1
    np.testing.assert_array_equal(found.labels, expected.labels[0, :count])
    np.testing.assert_allclose(found.scores, expected.scores[0, :count], rtol=1e-5)
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes[0, :count], atol=1e-2)


def test_results_are_in_the_order_of_the_pictures(
    config: Config, detector: rpn_jax.Detector
) -> None:
    path = sorted((Path(config.data.root) / "test").iterdir())[0]
    array = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    tall = np.ascontiguousarray(array.transpose(1, 0, 2)[:, :20])
    results = detector([tall, str(path), array, path])
    assert [result.image_id for result in results] == [1, 2, 3, 4]
    assert results[0].boxes_xyxy[:, 2].max() <= 20
    for result in results[2:]:
        np.testing.assert_array_equal(results[1].boxes_xyxy, result.boxes_xyxy)
        np.testing.assert_array_equal(results[1].labels, result.labels)
    assert detector([]) == []
    with pytest.raises(UserError, match=r"^pictures: is of type str; give a list: \[picture\]"):
        detector("a.jpg")


def test_an_rpn_is_no_detector(tiny_config: Config) -> None:
    with pytest.raises(UserError, match=r"^config tiny: is an RPN, whose boxes have no classes"):
        rpn_jax.Detector(tiny_config, {})


def test_a_proposer_takes_the_first_stage_of_a_detector(config: Config, weights: Path) -> None:
    [found] = rpn_jax.Proposer.load(weights)([np.full((64, 64, 3), 90, np.uint8)])
    assert 0 < len(found.scores) <= config.rpn_proposals.max_proposals


def read(path: Path) -> list[dict]:
    return json.loads(path.read_text())


def test_detect_writes_coco_results_with_the_ids_of_the_weights(
    config: Config, weights: Path, detector: rpn_jax.Detector, tmp_path: Path
) -> None:
    pictures = config.data.root + "/test"
    # The classes come with the weights, also if the config has those of COCO.
    roi = RoIHeadConfig(channels=16, pooled_size=3)
    coco = replace(config, model=replace(config.model, roi=roi))
    command.detect(coco, str(weights), [pictures], tmp_path, 5, exact_padding=False)
    rows = read(tmp_path / "detections.json")
    expected = detector(sorted(Path(pictures).iterdir()))
    assert [row["image_id"] for row in rows] == [
        result.image_id for result in expected for _ in result.scores
    ]
    ids = np.concatenate([np.array(CATEGORY_IDS)[result.labels] for result in expected])
    assert [row["category_id"] for row in rows] == ids.tolist()
    corners = np.concatenate([result.boxes_xyxy for result in expected])
    np.testing.assert_allclose([row["bbox"][:2] for row in rows], corners[:, :2], atol=1e-4)
    listed = json.loads((tmp_path / "pictures.json").read_text())
    assert len(listed["images"]) == 3
    names = {category["id"]: category["name"] for category in listed["categories"]}
    assert names == dict(zip(CATEGORY_IDS, detector.class_names, strict=True))
    drawn = sorted(tmp_path.glob("*.png"))
    assert len(drawn) == 3
    assert max(cv2.imread(str(drawn[0])).shape) >= 960


def test_detect_uses_the_image_ids_of_a_dataset_and_its_limits(
    config: Config, weights: Path, tmp_path: Path
) -> None:
    annotations = json.loads(
        (Path(config.data.root) / "annotations" / "instances_test.json").read_text()
    )
    for image in annotations["images"]:
        image["id"] += 500
    for annotation in annotations["annotations"]:
        annotation["image_id"] += 500
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(annotations))
    data = replace(
        config.data, eval_annotations=str(file), eval_images=str(Path(config.data.root) / "test")
    )
    config = replace(
        config, data=data, roi_detections=replace(config.roi_detections, max_detections=4)
    )
    command.detect(config, str(weights), [], tmp_path / "out", 0, exact_padding=False)
    rows = read(tmp_path / "out" / "detections.json")
    assert {row["image_id"] for row in rows} == {image["id"] for image in annotations["images"]}
    assert len(rows) == 4 * len(annotations["images"])


def test_without_pictures_and_data_the_message_says_what_to_name(
    config: Config, weights: Path, tmp_path: Path
) -> None:
    lost = replace(config, data=replace(config.data, root=str(tmp_path / "none")))
    with pytest.raises(UserError, match=r"^no picture is named, .*none.* or a dataset with"):
        command.detect(lost, str(weights), [], tmp_path / "out", 0, exact_padding=False)


def test_a_model_without_a_second_stage_cannot_detect(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is an RPN, whose boxes have no classes"):
        command.detect(tiny_config, "none", ["a.jpg"], tmp_path / "out", 0, exact_padding=False)
    assert not (tmp_path / "out").exists()


def test_proposals_below_a_score_are_left_out(
    config: Config, weights: Path, tmp_path: Path
) -> None:
    def proposals(score: float) -> list[dict]:
        out = tmp_path / str(score)
        pictures = [config.data.root + "/test"]
        command.propose(config, str(weights), pictures, out, 0, score, exact_padding=False)
        return read(out / "proposals.json")

    rows = proposals(0.0)
    middle = sorted(row["score"] for row in rows)[len(rows) // 2]
    kept = [row for row in rows if row["score"] > middle]
    assert 0 < len(kept) < len(rows)
    assert proposals(middle) == kept


def test_python_refuses_weights_of_another_model_with_the_same_shapes(
    config: Config, weights: Path
) -> None:
    variables = rpn_jax.load_variables(weights)
    head = config.model.rpn
    anchors = replace(head.anchors, scales=(8.0,))
    other = replace(config, model=replace(config.model, rpn=replace(head, anchors=anchors)))
    with pytest.raises(UserError, match=r"given: do not match the config: model\.rpn\.anchors"):
        rpn_jax.Proposer(other, variables)
    swapped = replace(config, pixels=replace(config.pixels, order="bgr"))
    with pytest.raises(UserError, match=r"pixels\.order is 'rgb' in the weights and 'bgr' in"):
        rpn_jax.Detector(swapped, variables)


def test_classes_that_the_user_chose_are_not_replaced_by_those_of_the_weights(
    config: Config, weights: Path, tmp_path: Path
) -> None:
    names = tuple(f"my {name}" for name in CLASSES)
    roi = RoIHeadConfig(len(CLASSES), names, CATEGORY_IDS, channels=16, pooled_size=3)
    mine = replace(config, model=replace(config.model, roi=roi))
    pictures = [config.data.root + "/test"]
    with pytest.raises(UserError, match=r"do not match the config: model\.roi\.class_names is"):
        command.detect(mine, str(weights), pictures, tmp_path, 0, exact_padding=False)


def test_a_folder_without_a_config_cannot_be_loaded_alone(
    config: Config, variables: Variables, tmp_path: Path
) -> None:
    save_variables(tmp_path / "w", config, variables)
    (tmp_path / "w" / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json\. Name the CONFIG of the weights"):
        rpn_jax.Detector.load(tmp_path / "w")


def test_coco_classes_have_the_ids_of_coco() -> None:
    roi = load_config("faster-rcnn_r50_fpn_1x_coco").model.roi
    assert roi is not None
    by_name = dict(zip(roi.class_names, roi.category_ids, strict=True))
    # From instances_val2017.json.
    assert by_name["person"] == 1
    assert by_name["stop sign"] == 13
    assert by_name["backpack"] == 27
    assert by_name["toothbrush"] == 90
    assert len(by_name) == 80
    assert replace(roi, num_classes=3).category_ids == (1, 2, 3)
    three = replace(roi, num_classes=3, class_names=("a", "b", "c"))
    assert three.category_ids == (1, 2, 3)
    assert replace(three, num_classes=2, class_names=("a", "b")).category_ids == (1, 2)
    with pytest.raises(UserError, match="3 different ids, one for each of"):
        replace(three, category_ids=(1, 2, 2))


def test_the_demo_of_a_detector_draws_named_boxes(
    config: Config, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, ...]] = []
    draw = drawings.draw_detections

    def watched(image, found, class_names, truth):
        shown.append(tuple(class_names))
        assert len(truth[0]) == len(truth[1]) > 0
        return draw(image, found, class_names, truth)

    def trained(config: Config, workdir: Path, resume: bool, on_evaluation: Callable) -> None:
        shutil.copytree(weights, workdir, dirs_exist_ok=True)

    def load(name: str) -> Config:
        assert name == "faster-rcnn_demo"
        return replace(config, data=replace(config.data, dataset="shapes", eval_split="eval"))

    monkeypatch.setattr(commands, "load_config", load)
    monkeypatch.setattr(commands, "train", trained)
    monkeypatch.setattr(commands, "draw_curves", lambda *arguments: None)
    monkeypatch.setattr(drawings, "draw_detections", watched)
    commands.demo(tmp_path, detector=True)
    assert len(list((tmp_path / "pictures").glob("*.png"))) == commands.DEMO_PICTURES
    assert shown == [CLASSES] * commands.DEMO_PICTURES
