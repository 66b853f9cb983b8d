"""Checking a whole dataset: problems with their remedies, exit codes, counts."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from rpn_jax import cli
from rpn_jax.config import AnchorConfig, DataConfig, load_config, replace
from rpn_jax.data.catalog import open_train_data
from rpn_jax.data.check import (
    annotation_problems,
    class_problems,
    opening_problems,
    picture_problems,
    used_objects,
)
from rpn_jax.data.dataset import describe_oddities
from rpn_jax.data.statistics import best_anchor_ious, dataset_statistics
from rpn_jax.ops.anchors import grid_anchors
from tests.data.coco_folder import (
    annotation_file,
    box_entry,
    image_entry,
    picture,
    write_coco_folder,
)


def write(root, images, boxes):
    """Write the same pictures and boxes as 'train' and as 'test'."""
    for split in ("train", "test"):
        write_coco_folder(root, images, boxes, split)
    return root


def config_of(root, **more):
    return DataConfig(root=str(root), train_split="train", eval_split="test", **more)


def problems_of(config, part="train"):
    dataset, problems = opening_problems(config, part)
    if dataset is not None:
        problems += used_objects(config, part, dataset)[1]
        problems += annotation_problems(config, part, dataset)
        problems += picture_problems(config, part, dataset, on_picture=lambda _: None)
    return problems


def flags_of(root):
    splits = ["--data.train-split", "train", "--data.eval-split", "test"]
    return ["--data.dataset", "coco", "--data.root", str(root), *splits]


def run(root, *flags):
    return cli.main(["check-data", "rpn_demo", *flags_of(root), *flags])


@pytest.fixture
def broken_root(tmp_path):
    """Pictures 1 and 2 share a file, 3 is no picture, 4 is a JPEG that is damaged in its middle."""
    images = [image_entry(number) for number in range(1, 5)]
    images[1]["file_name"] = images[0]["file_name"]
    images[3] = {**images[3], "file_name": "004.jpg", "height": 240, "width": 320}
    boxes = [
        box_entry(1, 1, [50, 30, 20, 5]),
        box_entry(2, 1, [1, 1, 0, 5]),
        box_entry(3, 2, [2, 2, 9, 9]),
        box_entry(4, 2, [2, 2, 9, 9]),
        box_entry(5, 2, [50, 30, 20, 5], iscrowd=1),
    ]
    root = write(tmp_path, images, boxes)
    for split in ("train", "test"):
        (root / split / "003.png").write_text("no picture")
        rng = np.random.default_rng(0)
        pixels = picture(3, 240, 320) // 2 + rng.integers(0, 99, (240, 320, 3), dtype=np.uint8)
        data = bytearray(cv2.imencode(".jpg", pixels)[1].tobytes())
        middle = len(data) // 2
        data[middle : middle + 500] = bytes(500)
        (root / split / "004.jpg").write_bytes(data)
    return root


def test_every_problem_is_listed_with_its_remedy(broken_root):
    found = {
        (each.level, each.file, each.item): f"{each.problem}. {each.remedy}"
        for each in problems_of(config_of(broken_root))
    }
    expected = {
        ("error", "001.png", "annotation 1"): "reaches 10.0 pixels out of the picture of 60x40",
        ("warning", "001.png", "annotation 2"): "is narrower or lower than 1 pixel",
        ("warning", "001.png", "picture 1"): "has the file name of 1 other pictures. Keep one",
        ("warning", "001.png", "picture 2"): "has the file name of 1 other pictures. Keep one",
        ("warning", "001.png", "annotation 4"): "repeats a box of the same class. Remove one",
        ("error", "003.png", "picture 3"): "is not a picture that OpenCV can read. Replace",
        ("warning", "004.jpg", "picture 4"): "its pixels are damaged (Corrupt JPEG data",
    }
    assert found.keys() == expected.keys()
    for key, text in expected.items():
        assert text in found[key]


def test_boxes_that_are_left_out_for_their_area_are_one_warning(tmp_path):
    boxes = [box_entry(k, 1, [k, 1, 9, 8], area=area) for k, area in ((1, 72), (2, 0), (3, 0.0))]
    config = config_of(write(tmp_path, [image_entry(1)], boxes))
    (only,) = problems_of(config)
    assert (only.level, only.file, only.item) == ("warning", "001.png", "annotation 2")
    assert only.problem == (
        "bbox [2.0, 1.0, 9.0, 8.0] has the 'area' 0 and is not trained on. Number of such boxes: 2"
    )
    assert "2 boxes without area" in describe_oddities("train", open_train_data(config).pictures)


def test_what_the_config_accepts_is_a_warning(broken_root):
    config = config_of(broken_root, clip_boxes=True, on_bad_picture="skip")
    assert {each.level for each in problems_of(config)} == {"warning"}


def test_every_broken_entry_of_a_file_is_listed(tmp_path):
    boxes = [box_entry(number, 1, [1, 1, 5, 5]) for number in range(1, 5)]
    boxes[1]["bbox"] = None
    boxes[3] |= {"category_id": 9}
    root = write(tmp_path, [image_entry(1), image_entry(2)], boxes)
    coco = json.loads(annotation_file(root).read_text())
    coco["images"][1]["height"] = 0
    coco["categories"].append({"id": 2, "name": "x"})
    coco["annotations"][2]["category_id"] = 2
    annotation_file(root).write_text(json.dumps(coco))
    assert [(each.item, each.problem) for each in problems_of(config_of(root))] == [
        ("image number 1", "'height' is 0, must be a whole number, 1 to 1048576"),
        ("annotation 2", "'bbox' is None, must be [x, y, width, height] in pixels"),
        ("annotation 4", "'category_id' is 9, but the file has no such category"),
        ("categories 1 and 2", "have the same name 'x'. Names must differ"),
    ]


def test_every_broken_xml_file_and_every_dataset_is_listed(tmp_path):
    (tmp_path / "voc" / "train").mkdir(parents=True)
    (tmp_path / "voc" / "train" / "a.xml").write_text("<a")
    (tmp_path / "voc" / "train" / "b.xml").write_text("<annotation><object/></annotation>")
    root = write(tmp_path / "coco", [image_entry(1)], [box_entry(1, 1, None)])
    found = problems_of(config_of(root, train_also=(f"voc:{tmp_path / 'voc'}:train",)))
    assert [(each.file.rpartition("/")[2], each.problem.partition(" (")[0]) for each in found] == [
        ("instances_train.json", "'bbox' is None, must be [x, y, width, height] in pixels"),
        ("a.xml", "is not XML"),
        ("b.xml", "an object has no 'name'. Every object needs one"),
    ]


def test_pictures_that_are_too_small_are_one_warning(tmp_path):
    images = [image_entry(1), image_entry(2, 31, 60), image_entry(3, 40, 20)]
    boxes = [box_entry(number, number, [1, 1, 9, 9]) for number in (1, 2, 3)]
    config = config_of(write(tmp_path, images, boxes))
    (only,) = problems_of(config)
    assert (only.level, only.file, only.item) == ("warning", "002.png", "picture 2")
    assert only.problem == (
        "60x31 pixels, is not trained on because a side is below data.min_image_size = 32. "
        "Number of such pictures: 2"
    )
    assert problems_of(config, "eval") == []


def test_a_box_without_area_may_lie_anywhere(tmp_path):
    boxes = [box_entry(1, 1, [1, 1, 9, 9]), box_entry(2, 1, [50, 30, 40, 30], area=0)]
    found = problems_of(config_of(write(tmp_path, [image_entry(1)], boxes)))
    assert [each.level for each in found] == ["warning"]


@pytest.mark.parametrize(("most", "levels"), [(2, ["warning", "warning"]), (1, ["error"])])
def test_more_bad_pictures_than_are_skipped_are_an_error(tmp_path, most, levels):
    images = [image_entry(number) for number in (1, 2, 3)]
    boxes = [box_entry(number, number, [1, 1, 9, 9]) for number in (1, 2, 3)]
    root = write(tmp_path, images, boxes)
    for number in (1, 2):
        (root / "train" / f"00{number}.png").write_text("no picture")
    config = config_of(root, on_bad_picture="skip", max_bad_pictures=most)
    assert [each.level for each in problems_of(config)][2 * (most == 1) :] == levels


def test_a_class_that_only_the_evaluation_has_is_an_error_for_a_detector(tmp_path):
    root = write(tmp_path, [image_entry(1)], [box_entry(1, 1, [1, 1, 9, 9])])
    coco = json.loads(annotation_file(root, "test").read_text())
    coco["categories"].append({"id": 2, "name": "y"})
    annotation_file(root, "test").write_text(json.dumps(coco))
    parts = [opening_problems(config_of(root), part)[0] for part in ("train", "eval")]
    detector = replace(load_config("faster-rcnn_demo"), data=config_of(root))
    (only,) = class_problems(detector, *parts)
    assert (only.level, only.part) == ("error", "eval")
    assert "and not 'y'" in only.problem
    assert list(class_problems(load_config("rpn_demo"), *parts)) == []
    assert cli.main(["check-data", "faster-rcnn_demo", *flags_of(root)]) == 2


def test_a_dataset_that_cannot_be_opened_is_one_problem(tmp_path):
    (only,) = problems_of(config_of(tmp_path / "none"))
    assert only.level == "error"
    assert only.problem.endswith("no such folder. Choose one with --data.root")


@pytest.mark.parametrize("part", ["train", "eval"])
@pytest.mark.parametrize(
    ("images", "classes", "train_message", "eval_message"),
    [
        (0, (), "no picture to train on: none of 0", "split 'test': has no box to find"),
        (2, (), "no picture to train on: none of 2", "split 'test': has no box to find"),
        (1, ("Foo",), "data.train_classes: the dataset has no class 'Foo'", "data.eval_classes: "),
        (1, ("none.txt",), "none.txt: cannot be read", "none.txt: cannot be read"),
    ],
)
def test_what_training_or_evaluation_refuses_is_an_error(
    tmp_path, images, classes, train_message, eval_message, part
):
    entries = [image_entry(number) for number in range(1, images + 1)]
    boxes = [box_entry(1, 1, [1, 1, 9, 9])] if images == 1 else []
    config = config_of(write(tmp_path, entries, boxes), train_classes=classes, eval_classes=classes)
    (only,) = problems_of(config, part)
    assert only.level == "error"
    assert only.problem.startswith(train_message if part == "train" else eval_message)


def test_the_command_prints_tables_and_writes_json(broken_root, tmp_path, capsys):
    assert run(broken_root, "--out", str(tmp_path / "report.json")) == 2
    printed = capsys.readouterr().out
    assert "14 problems" in printed
    assert "boxes that no anchor reaches at IoU 0.5" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["problems"]) == 14
    assert report["statistics"]["train"]["pictures"] == 4
    assert run(broken_root, "--data.clip-boxes", "--data.on-bad-picture", "skip") == 1


def test_the_counts_leave_out_the_classes_that_are_not_used(tmp_path, capsys):
    boxes = [box_entry(1, 1, [0, 0, 16, 16])]
    root = write(tmp_path, [image_entry(1)], boxes)
    coco = json.loads(annotation_file(root).read_text())
    coco["categories"].append({"id": 2, "name": "y"})
    coco["annotations"].append({**box_entry(2, 1, [20, 0, 16, 16]), "category_id": 2})
    for split in ("train", "test"):
        annotation_file(root, split).write_text(json.dumps(coco))
    out = tmp_path / "report.json"
    assert run(root, "--out", str(out), "--data.train-classes", "y") == 0
    counted = json.loads(out.read_text())["statistics"]
    assert counted["train"]["boxes of each class"] == {"x": 0, "y": 1}
    assert counted["eval"]["boxes of each class"] == {"x": 1, "y": 1}
    assert sum(row["boxes"] for row in counted["train"]["boxes that no anchor reaches"]) == 1


def test_a_split_without_pictures_has_exit_code_2(tmp_path, capsys):
    assert run(write(tmp_path, [], [])) == 2
    assert "2 problems" in capsys.readouterr().out


def test_a_clean_dataset_has_exit_code_0(coco_root, capsys):
    assert run(coco_root) == 0
    assert "no problems found" in capsys.readouterr().out


def test_counts(tmp_path):
    images = [image_entry(1), image_entry(2, 80, 40), image_entry(3)]
    boxes = [box_entry(1, 1, [0, 0, 16, 16]), box_entry(2, 1, [0, 0, 2, 2])]
    boxes.append(box_entry(3, 2, [0, 0, 16, 16]))
    root = write(tmp_path, images, boxes)
    dataset, _ = opening_problems(config_of(root), "train")
    config = config_of(root, scale=(120, 80))  # the first picture doubles its size
    anchors = AnchorConfig(strides=(8,), scales=(4.0,), ratios=(1.0,))
    statistics = dataset_statistics(dataset, config, anchors)
    assert statistics["pictures"] == 3
    assert statistics["pictures without boxes"] == 1
    assert statistics["boxes a picture"] == {"least": 0, "median": 1, "most": 2}
    assert statistics["picture sizes (width x height)"] == {"60x40": 2, "40x80": 1}
    assert statistics["boxes of each class"] == {"x": 3}
    # Boxes of 32, 4 and 24 pixels after the resize, and anchors of 32 pixels.
    assert statistics["boxes that no anchor reaches"] == [
        {"size": "0 to 8 px", "boxes": 1, "unreached": 1},
        {"size": "16 to 32 px", "boxes": 1, "unreached": 0},
        {"size": "32 to 64 px", "boxes": 1, "unreached": 0},
    ]


def test_best_anchors_are_those_of_a_search_over_all_anchors():
    rng = np.random.default_rng(0)
    height, width = 70, 100
    corners = np.sort(rng.uniform(0, (width, height), (200, 2, 2)), axis=1)
    boxes_xyxy = corners.reshape(-1, 4) + np.array([0, 0, 1, 1])
    config = AnchorConfig(strides=(4, 8, 16), scales=(2.0, 4.0))
    shapes = [(-(-96 // stride), -(-128 // stride)) for stride in config.strides]
    anchors = np.concatenate([np.asarray(level) for level in grid_anchors(shapes, config)])
    low = np.maximum(boxes_xyxy[:, None, :2], anchors[None, :, :2])
    high = np.minimum(boxes_xyxy[:, None, 2:], anchors[None, :, 2:])
    overlap = np.maximum(high - low, 0).prod(axis=2)
    areas = [(each[:, 2:] - each[:, :2]).prod(axis=1) for each in (boxes_xyxy, anchors)]
    ious = overlap / (areas[0][:, None] + areas[1] - overlap)
    found = best_anchor_ious(boxes_xyxy, np.full((200, 2), (height, width)), config)
    np.testing.assert_allclose(found, ious.max(axis=1), rtol=1e-5)
