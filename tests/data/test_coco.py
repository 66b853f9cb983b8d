from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from rpn_jax.config import DataConfig
from rpn_jax.data.catalog import open_dataset, open_eval_data, open_train_data
from rpn_jax.data.coco import open_coco
from rpn_jax.data.dataset import describe_oddities, training_box_counts, training_boxes
from rpn_jax.errors import UserError
from tests.data.coco_folder import (
    annotation_file,
    box_entry,
    image_entry,
    picture,
    write_coco_folder,
)
from tests.golden_files import BCCD


def refusal(root, **options) -> str:
    with pytest.raises(UserError) as caught:
        open_coco(root, **{"split": "train", "clip_boxes": False, **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pictures_and_boxes(tmp_path):
    images = [image_entry(7), image_entry(3, 50, 30), image_entry(9)]
    boxes = [
        box_entry(1, 3, [1.5, 2, 10, 20]),
        box_entry(2, 7, [0, 0, 60, 40]),
        box_entry(3, 3, [5, 6, 7.25, 8]),
    ]
    dataset = open_coco(write_coco_folder(tmp_path, images, boxes), "train", clip_boxes=False)
    assert [p.image_id for p in dataset.pictures] == [7, 3, 9]
    assert [(p.height, p.width) for p in dataset.pictures] == [(40, 60), (50, 30), (40, 60)]
    np.testing.assert_array_equal(training_boxes(dataset.pictures[0])[0], [[0, 0, 60, 40]])
    np.testing.assert_array_equal(
        training_boxes(dataset.pictures[1])[0], [[1.5, 2, 11.5, 22], [5, 6, 12.25, 14]]
    )
    assert training_boxes(dataset.pictures[2])[0].shape == (0, 4)
    assert all(training_boxes(p)[0].dtype == np.float32 for p in dataset.pictures)
    np.testing.assert_array_equal(dataset.load_image(1), picture(1, 50, 30))


def test_which_boxes_are_trained_on(tmp_path):
    boxes = [
        box_entry(1, 1, [1, 1, 9, 9]),
        box_entry(2, 1, [1, 1, 9, 9], iscrowd=1),
        box_entry(3, 1, [1, 1, 9, 9], ignore=1),
        box_entry(4, 1, [1, 1, 9, 9], area=0),
        box_entry(5, 1, [1, 1, 0.99, 9]),
        box_entry(6, 1, [1, 1, 9, 0.5]),
        box_entry(7, 1, [1, 1, 0, 9], area=45),
        box_entry(8, 1, [2, 2, 1, 1], iscrowd=False, ignore=False),
        box_entry(9, 1, [1, 1, 9, 9], iscrowd=True),
        box_entry(10, 1, [1, 1, 9, 9], ignore=True),
    ]
    root = write_coco_folder(tmp_path, [image_entry(1)], boxes)
    dataset = open_coco(root, "train", clip_boxes=False)
    (picture,) = dataset.pictures
    np.testing.assert_array_equal(training_boxes(picture)[0], [[1, 1, 10, 10], [2, 2, 3, 3]])
    np.testing.assert_array_equal(training_box_counts([picture, picture]), [2, 2])
    # Evaluation needs the others too.
    np.testing.assert_array_equal(picture.objects.boxes_xywh, [box["bbox"] for box in boxes])
    assert picture.objects.ids.tolist() == [*range(1, 11)]
    assert picture.objects.areas.tolist() == [box["area"] for box in boxes]
    assert (np.flatnonzero(picture.objects.is_crowd) + 1).tolist() == [2, 9]
    assert (np.flatnonzero(picture.objects.is_difficult) + 1).tolist() == [3, 10]


def test_area_and_crowd_that_are_left_out_are_filled_in(tmp_path):
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
    dataset = open_coco(write_coco_folder(tmp_path, [image_entry(1)], [box]), "train", False)
    (picture,) = dataset.pictures
    assert picture.objects.areas.tolist() == [12]
    assert picture.objects.is_crowd.tolist() == [False]
    np.testing.assert_array_equal(training_boxes(picture)[0], [[1, 2, 4, 6]])


@pytest.mark.parametrize(
    "bbox", [[-1.1, 0, 10, 10], [0, -2, 10, 10], [51.2, 0, 10, 10], [0, 31.5, 5, 10], [80, 0, 5, 5]]
)
def test_box_out_of_its_picture_is_refused_or_cut(tmp_path, bbox):
    boxes = [box_entry(11, 1, [1, 1, 5, 5]), box_entry(12, 1, bbox)]
    root = write_coco_folder(tmp_path, [image_entry(1)], boxes)
    message = refusal(root)
    for part in ("instances_train.json", "annotation 12", "001.png", str(bbox), "60x40"):
        assert part in message
    assert message.endswith("Correct it, or clip such boxes with --data.clip-boxes")

    x, y, width, height = bbox
    cut = [max(x, 0), max(y, 0), min(x + width, 60), min(y + height, 40)]
    expected = [[1, 1, 6, 6]] + ([cut] if cut[0] < cut[2] else [])
    clipped = open_coco(root, "train", clip_boxes=True)
    np.testing.assert_allclose(training_boxes(clipped.pictures[0])[0], expected, rtol=1e-6)


def test_rounding_over_the_border_is_cut_without_complaint(tmp_path):
    boxes = [
        box_entry(1, 1, [-0.9, -1, 20, 20]),
        box_entry(2, 1, [50, 30, 11, 11]),
        box_entry(3, 1, [60, 0, 1, 9]),  # nothing of it is inside
    ]
    root = write_coco_folder(tmp_path, [image_entry(1)], boxes)
    dataset = open_coco(root, "train", clip_boxes=False)
    np.testing.assert_allclose(
        training_boxes(dataset.pictures[0])[0], [[0, 0, 19.1, 19], [50, 30, 60, 40]], rtol=1e-6
    )


def test_crowd_out_of_its_picture_does_not_matter(tmp_path):
    root = write_coco_folder(
        tmp_path, [image_entry(1)], [box_entry(1, 1, [50, 0, 30, 9], iscrowd=1)]
    )
    (picture,) = open_coco(root, "train", clip_boxes=False).pictures
    assert len(training_boxes(picture)[0]) == 0


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"bbox": [1, 2, 3]}, "annotation 5: 'bbox' is [1, 2, 3], must be [x, y, width, height]"),
        ({"bbox": None}, "annotation 5: 'bbox' is None"),
        ({"bbox": ["1", 2, 3, 4]}, "annotation 5: 'bbox' is ['1', 2, 3, 4]"),
        ({"bbox": [1, 2, float("nan"), 4]}, "annotation 5: 'bbox' is [1, 2, nan, 4]"),
        ({"image_id": 99}, "annotation 5: 'image_id' is 99, but the file has no such image"),
        ({"image_id": [1]}, "annotation 5: 'image_id' is [1], but the file has no such image"),
        (
            {"bbox": [50, 30, -20, -20]},
            "annotation 5: 'bbox' is [50, 30, -20, -20], its width and height must be 0 or more",
        ),
        ({"bbox": [50, 30, 5, -0.5]}, "annotation 5: 'bbox' is [50, 30, 5, -0.5], its width"),
        ({"area": "big"}, "annotation 5: 'area' is 'big', must be a number of pixels, 0 or more"),
        ({"area": -5}, "annotation 5: 'area' is -5, must be a number of pixels, 0 or more"),
        ({"iscrowd": "0"}, "annotation 5: 'iscrowd' is '0', must be 0 or 1"),
        ({"iscrowd": None}, "annotation 5: 'iscrowd' is None, must be 0 or 1"),
        ({"ignore": 2}, "annotation 5: 'ignore' is 2, must be 0 or 1"),
        ({"id": None}, "annotation number 1 must be an object with an 'id': a whole number or"),
        ({"category_id": 7}, "annotation 5: 'category_id' is 7, but the file has no such category"),
        ({"id": 2**63}, "annotation number 1 must be an object with an 'id': a whole number or"),
        ({"bbox": [1, 2, float("inf"), 4]}, "annotation 5: 'bbox' is [1, 2, inf, 4]"),
        ({"bbox": [1, 2, 10**400, 4]}, "annotation 5: 'bbox' is [1, 2, 1000"),
        ({"bbox": [1, 2, 1e308, 1e308], "area": 9}, "annotation 5: 'bbox' is [1, 2, 1e+308, "),
        ({"area": 10**400}, "annotation 5: 'area' is 1000"),
        ({"id": 4}, "two annotations have the id 4. Ids must differ"),
    ],
)
def test_broken_annotation_is_named(tmp_path, broken, message):
    boxes = [box_entry(4, 1, [1, 2, 3, 4]), {**box_entry(5, 1, [1, 2, 3, 4]), **broken}]
    root = write_coco_folder(tmp_path, [image_entry(1)], boxes)
    assert refusal(root).startswith(f"{annotation_file(root)}: {message}")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            {"height": "40"},
            "image number 1: 'height' is '40', must be a whole number, 1 to 1048576",
        ),
        ({"width": 0}, "image number 1: 'width' is 0, must be a whole number, 1 to 1048576"),
        (
            {"width": 10**20},
            f"image number 1: 'width' is {10**20}, must be a whole number, 1 to 1048576",
        ),
        (
            {"file_name": None},
            "image number 1: 'file_name' is None, must be a text that is not empty",
        ),
        ({"id": []}, "image number 1: 'id' is [], must be a whole number or a text"),
        ({"id": "1"}, "two images have the id 1. Ids must differ"),
        ({"id": 1}, "two images have the id 1. Ids must differ"),
    ],
)
def test_broken_image_is_named(tmp_path, broken, message):
    root = write_coco_folder(tmp_path, [image_entry(1), image_entry(2)], [])
    coco = json.loads(annotation_file(root).read_text())
    coco["images"][1].update(broken)
    annotation_file(root).write_text(json.dumps(coco))
    assert refusal(root) == f"{annotation_file(root)}: {message}"


def write_categories(root, categories):
    coco = json.loads(annotation_file(root).read_text())
    if categories is None:
        del coco["categories"]
    else:
        coco["categories"] = categories
    annotation_file(root).write_text(json.dumps(coco))


def test_labels_are_positions_in_the_list_of_categories(tmp_path):
    boxes = [box_entry(k, 1, [1, 1, 9, 9], category_id=k) for k in (3, 90, 7)]
    root = write_coco_folder(tmp_path, [image_entry(1), image_entry(2)], boxes)
    write_categories(
        root, [{"id": 7, "name": "a"}, {"id": 90, "name": "b"}, {"id": 3, "name": "c"}]
    )
    dataset = open_coco(root, "train", clip_boxes=False)
    assert dataset.class_names == ("a", "b", "c")
    assert dataset.category_ids == (7, 90, 3)
    assert dataset.pictures[0].objects.labels.tolist() == [2, 1, 0]
    assert training_boxes(dataset.pictures[0])[1].tolist() == [2, 1, 0]


@pytest.mark.parametrize("categories", [None, []])
def test_without_categories_all_boxes_are_of_one_class(tmp_path, categories):
    boxes = [box_entry(1, 1, [1, 1, 9, 9], category_id=5)]
    root = write_coco_folder(tmp_path, [image_entry(1)], boxes)
    write_categories(root, categories)
    dataset = open_coco(root, "train", clip_boxes=False)
    assert (dataset.class_names, dataset.category_ids) == (("object",), (1,))
    assert dataset.pictures[0].objects.labels.tolist() == [0]


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([3], "category number 0 is 3: must be an object"),
        (
            [{"id": True, "name": "x"}],
            "category number 0: 'id' is True, must be a whole number or a text",
        ),
        ([{"id": 1}], "category number 0: 'name' is None, must be a text"),
        ([{"id": 1, "name": "x"}] * 2, "two categories have the id 1. Ids must differ"),
    ],
)
def test_broken_category_is_named(tmp_path, categories, message):
    root = write_coco_folder(tmp_path, [image_entry(1)], [])
    write_categories(root, categories)
    assert refusal(root) == f"{annotation_file(root)}: {message}"


SAME_NAMES = [{"id": 1, "name": "x"}, {"id": 4, "name": "y"}, {"id": "b", "name": "x"}]


def test_two_annotated_categories_must_have_different_names(tmp_path):
    boxes = [box_entry(k, 1, [1, 1, 9, 9], category_id=name) for k, name in ((1, 1), (2, "b"))]
    root = write_coco_folder(tmp_path, [image_entry(1)], boxes)
    write_categories(root, SAME_NAMES)
    message = "categories 1 and b: have the same name 'x'. Names must differ"
    assert refusal(root) == f"{annotation_file(root)}: {message}"


@pytest.mark.parametrize(
    ("used", "names", "label"),
    [
        ([1], ("x", "y"), [0]),
        (["b"], ("y", "x"), [1]),
        ([4], ("y", "x"), [0]),
        ([], ("y", "x"), []),
    ],
)
def test_a_category_without_annotations_is_left_out_if_its_name_is_used(
    tmp_path, used, names, label
):
    boxes = [box_entry(1, 1, [1, 1, 9, 9], category_id=name) for name in used]
    root = write_coco_folder(tmp_path, [image_entry(1)], boxes)
    write_categories(root, SAME_NAMES)
    dataset = open_coco(root, "train", clip_boxes=False)
    assert dataset.class_names == names
    assert dataset.pictures[0].objects.labels.tolist() == label


def test_values_that_only_python_reads_are_accepted_in_unused_fields(tmp_path):
    box = box_entry(1, 1, [1, 1, 9, 9], score=float("nan"))
    root = write_coco_folder(tmp_path, [image_entry(1)], [box])
    assert "NaN" in annotation_file(root).read_text()
    (picture,) = open_coco(root, "train", clip_boxes=False).pictures
    np.testing.assert_array_equal(training_boxes(picture)[0], [[1, 1, 10, 10]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON (Expecting"),
        ("[]", "is not a COCO file, because it has no list 'images'"),
        ('{"images": []}', "is not a COCO file, because it has no list 'annotations'"),
        (
            '{"images": {}, "annotations": []}',
            "is not a COCO file, because it has no list 'images'",
        ),
        (
            '{"images": [], "annotations": [], "categories": null}',
            "'categories' is of type NoneType. Remove it, or write a list",
        ),
        ('{"images": [3], "annotations": []}', "image number 0 is 3: must be an object"),
    ],
)
def test_file_that_is_no_ground_truth_is_refused(tmp_path, text, message):
    root = write_coco_folder(tmp_path, [image_entry(1)], [])
    annotation_file(root).write_text(text)
    assert refusal(root).startswith(f"{annotation_file(root)}: {message}")


def test_missing_folders_and_splits_are_named(tmp_path):
    assert (
        refusal(tmp_path / "none")
        == f"data.root = '{tmp_path / 'none'}': no such folder. Choose one with --data.root"
    )
    assert "Splits there: none. In another layout, name the file with " in refusal(tmp_path)
    root = write_coco_folder(tmp_path, [image_entry(1)], [], split="val2017")
    write_coco_folder(root, [image_entry(1)], [], split="train2017")
    assert refusal(root).startswith(
        f"split 'train': there is no {annotation_file(root)}. Splits there: train2017, val2017."
    )
    shutil.copy(annotation_file(root, "train2017"), annotation_file(root))
    assert refusal(root).startswith(
        f"split 'train': there is no folder {root / 'train'} with its pictures. Name their folder"
    )


def test_unreadable_root_is_named(tmp_path, forbid):
    forbid(tmp_path)
    assert refusal(tmp_path / "coco") == (
        f"data.root = '{tmp_path / 'coco'}': cannot be read (Permission denied)"
    )


@pytest.mark.parametrize("folder", ["annotations", "train", "train/inner"])
def test_an_unreadable_folder_in_a_readable_root_is_named(tmp_path, forbid, folder):
    images = [image_entry(1), {**image_entry(2), "file_name": "inner/002.png"}]
    root = write_coco_folder(tmp_path, images, [])
    forbid(root / folder)
    assert refusal(root) == f"{root / folder}: cannot be read (Permission denied)"


def test_missing_pictures_are_named_when_opened(tmp_path):
    images = [image_entry(number) for number in range(1, 5)]
    images[2]["file_name"] = "inner/003.png"
    root = write_coco_folder(tmp_path, images, [])
    assert len(open_coco(root, "train", clip_boxes=False).pictures) == 4
    (root / "train" / "002.png").unlink()
    (root / "train" / "inner" / "003.png").unlink()
    assert refusal(root) == (
        f"{root / 'train' / '002.png'}: no such picture, but {annotation_file(root)} names it "
        "(2 of 4 pictures are missing)"
    )


def test_a_name_with_a_line_break_stays_on_one_line(tmp_path):
    root = write_coco_folder(tmp_path, [{**image_entry(1), "file_name": "a\nb.png"}], [])
    (root / "train" / "a\nb.png").unlink()
    assert refusal(root).startswith(f"{root / 'train'}/a\\nb.png: no such picture")


def test_wrong_pixels_are_named_when_loaded(tmp_path):
    root = write_coco_folder(tmp_path, [image_entry(1), image_entry(2)], [])
    dataset = open_coco(root, "train", clip_boxes=False)
    (root / "train" / "001.png").write_text("no picture")
    with pytest.raises(UserError, match=r"^.*train/001\.png: is not a picture that OpenCV can"):
        dataset.load_image(0)
    write_coco_folder(tmp_path / "other", [image_entry(2, 60, 40)], [])
    (tmp_path / "other" / "train" / "002.png").rename(root / "train" / "002.png")
    message = (
        "002.png: is 40x60 (width x height, EXIF orientation applied), but "
        f"{annotation_file(root)} says 60x40"
    )
    with pytest.raises(UserError, match="^" + re.escape(message)):
        dataset.load_image(1)


def test_bccd():
    dataset = open_dataset(DataConfig(root=str(BCCD)), "test")
    assert len(dataset.pictures) == 72
    assert training_box_counts(dataset.pictures).sum() == 945
    assert dataset.load_image(0).shape == (480, 640, 3)
    assert set(dataset.class_names) == {"RBC", "WBC", "Platelets"}
    x, y, width, height = dataset.pictures[0].objects.boxes_xywh[0]
    boxes_xyxy, _ = training_boxes(dataset.pictures[0])
    np.testing.assert_array_equal(boxes_xyxy[0], [x, y, x + width, y + height])


def test_a_file_without_pictures_has_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "test").mkdir()
    empty: dict[str, list[object]] = {"images": [], "annotations": [], "categories": []}
    (tmp_path / "annotations" / "instances_test.json").write_text(json.dumps(empty))
    dataset = open_dataset(DataConfig(root=str(tmp_path)), "test")
    assert len(dataset.pictures) == 0


@pytest.mark.parametrize("name", ["../../other/a.png", "inner/../../a.png", "/etc/hostname"])
def test_a_file_name_that_points_out_of_the_folder_is_refused(tmp_path, name):
    root = write_coco_folder(tmp_path / "coco", [image_entry(1)], [])
    write_image_name(root, name)
    assert refusal(root).startswith(
        f"{annotation_file(root)}: picture 1: its file name '{name}' points out of the folder "
        f"{root / 'train'}. Correct it, or choose"
    )


def test_names_with_dots_and_absolute_names_inside_the_folder_are_accepted(tmp_path):
    root = write_coco_folder(tmp_path, [image_entry(1)], [])
    (root / "train" / "inner").mkdir()
    for name in ("inner/../001.png", str(root / "train" / "001.png")):
        write_image_name(root, name)
        assert open_coco(root, "train", False).load_image(0).shape == (40, 60, 3)


def write_image_name(root, name):
    coco = json.loads(annotation_file(root).read_text())
    coco["images"][0]["file_name"] = name
    annotation_file(root).write_text(json.dumps(coco))


def test_a_pipe_or_a_device_is_refused(tmp_path):
    root = write_coco_folder(tmp_path, [image_entry(1), image_entry(2)], [])
    for name in ("001.png", "002.png"):
        (root / "train" / name).unlink()
    os.mkfifo(root / "train" / "001.png")
    (root / "train" / "002.png").symlink_to("/dev/zero")
    dataset = open_coco(root, "train", False)
    for index, name in enumerate(("001.png", "002.png")):
        with pytest.raises(UserError, match=rf"{name}: is not a regular file\. It must"):
            dataset.load_image(index)


def test_annotations_in_a_pipe_are_refused(tmp_path):
    root = write_coco_folder(tmp_path, [image_entry(1)], [])
    annotation_file(root).unlink()
    os.mkfifo(annotation_file(root))
    assert refusal(root) == f"{annotation_file(root)}: is not a regular file. It must be a file."


@pytest.mark.parametrize("where", ["annotation", "top"])
def test_deeply_nested_json_is_refused(tmp_path, where):
    root = write_coco_folder(tmp_path, [image_entry(1)], [box_entry(1, 1, [1, 1, 9, 9])])
    deep = "[" * 100_000 + "]" * 100_000
    text = annotation_file(root).read_text()
    text = text.replace('"area"', f'"deep": {deep}, "area"') if where == "annotation" else deep
    annotation_file(root).write_text(text)
    assert "its JSON is nested too deeply" in refusal(root)


def test_boxes_without_area_and_repeated_file_names_are_counted(tmp_path):
    images = [image_entry(1), image_entry(2), {**image_entry(3), "file_name": "001.png"}]
    boxes = [
        box_entry(k, 1, box) for k, box in enumerate([[1, 1, 0, 5], [1, 1, 5, 0], [1, 1, 5, 5]])
    ]
    root = write_coco_folder(tmp_path, images, boxes)
    pictures = open_coco(root, "train", False).pictures
    assert describe_oddities("train", pictures) == (
        "note: 'train' has 2 boxes without area, which are not trained on, and "
        "1 pictures with the file name of another one"
    )
    assert describe_oddities("train", pictures[1:2]) == ""


ROBOFLOW = ("{split}/_annotations.coco.json", "{split}")
FLAT = ("annotations/instances_{split}.json", "images")


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ROBOFLOW,
        FLAT,
        ("annotations/instances_{split}.json", ""),
        ("annotations/{split}.json", "images/{split}"),
        ("{split}.json", "images"),
    ],
)
def test_layouts_of_folders_are_recognised(tmp_path, file, folder):
    root = write_coco_folder(tmp_path / "a", [image_entry(1)], [box_entry(1, 1, [1, 1, 9, 9])])
    other = tmp_path / "b"
    for target in (file, folder + "/001.png"):
        (other / target.format(split="train").lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(annotation_file(root), other / file.format(split="train"))
    shutil.copy(root / "train" / "001.png", other / folder.format(split="train") / "001.png")
    dataset = open_coco(other, "train", False)
    assert dataset.load_image(0).shape == (40, 60, 3)
    assert "Splits there: train" in refusal(other, split="test")


def test_a_file_and_a_folder_that_flags_name(tmp_path):
    root = write_coco_folder(tmp_path, [image_entry(1)], [box_entry(1, 1, [1, 1, 9, 9])])
    (root / "train").rename(root / "pixels")
    file = annotation_file(root).rename(root / "boxes.json")
    config = DataConfig(
        train_annotations=str(file),
        train_images=str(root / "pixels"),
        eval_annotations=str(file),
        eval_images=str(root / "none"),
    )
    assert open_train_data(config).load_image(0).shape == (40, 60, 3)
    assert (config.train_name, config.eval_name) == (str(file), str(file))
    with pytest.raises(UserError, match=r"/none: no such folder of pictures$"):
        open_eval_data(config)
