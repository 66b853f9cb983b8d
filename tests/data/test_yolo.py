"""YOLO folders: data.yaml, and labels in fractions of the picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rpn_jax.config import DataConfig
from rpn_jax.data.catalog import open_dataset
from rpn_jax.errors import UserError
from tests.data.coco_folder import picture

LABELS = "1 0.5 0.5 0.5 0.25\n0 0.1 0.2 0.6 0.2 0.6 0.8\n"
"""A box and an outline, in a picture of 60x40 (width x height)."""
BOXES = [[15, 15, 30, 10], [6, 8, 30, 24]]


def write_picture(file, labels=None, label_file=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), picture(1, 40, 60)[..., ::-1])
    if labels is not None:
        label_file.parent.mkdir(parents=True, exist_ok=True)
        label_file.write_text(labels)


@pytest.fixture
def root(tmp_path):
    """Ultralytics' layout: 'train' has a picture with labels and one without, 'val' has one."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    write_picture(images / "train" / "a.png", LABELS, labels / "train" / "a.txt")
    write_picture(images / "train" / "b.png")
    write_picture(images / "val" / "c.png", LABELS, labels / "val" / "c.txt")
    (tmp_path / "data.yaml").write_text(
        "path: ../elsewhere\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n"
    )
    return tmp_path


def open_yolo(root, split="train"):
    return open_dataset(DataConfig(dataset="yolo", root=str(root)), split)


def refusal(root, split="train"):
    with pytest.raises(UserError) as caught:
        open_yolo(root, split)
    return str(caught.value)


def test_pictures_objects_and_classes(root):
    dataset = open_yolo(root)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.category_ids == (1, 2)
    first, second = dataset.pictures
    assert (first.image_id, first.name, first.height, first.width) == (1, "a.png", 40, 60)
    np.testing.assert_allclose(first.objects.boxes_xywh, BOXES)
    np.testing.assert_allclose(first.objects.areas, [300, 720])
    assert first.objects.labels.tolist() == [1, 0]
    assert (second.name, len(second.objects.labels)) == ("b.png", 0)
    assert dataset.load_image(0).shape == (40, 60, 3)
    assert [each.name for each in open_yolo(root / "data.yaml", "val").pictures] == ["c.png"]


def test_roboflows_layout(tmp_path):
    write_picture(tmp_path / "train" / "images" / "a.jpg")
    (tmp_path / "train" / "labels").mkdir()
    (tmp_path / "train" / "labels" / "a.txt").write_text(LABELS)
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: no\nnames: [cat, dog]\nnc: 2")
    (only,) = open_yolo(tmp_path).pictures
    np.testing.assert_allclose(only.objects.boxes_xywh, BOXES)


def test_lists_of_folders_and_text_files_of_paths(root):
    (root / "list.txt").write_text("images/val/c.png\n\nimages/train/b.png\n")
    (root / "data.yaml").write_text("train: [images/train, list.txt]\nnames: [cat, dog]\n")
    pictures = open_yolo(root).pictures
    assert [each.name for each in pictures] == ["train/a.png", "train/b.png", "val/c.png"]
    assert [len(each.objects.labels) for each in pictures] == [2, 0, 2]


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("images/train", ["a.png", "b.png", "sub/d.png"]),
        ("[images/train, images]", ["train/a.png", "train/b.png", "train/sub/d.png", "val/c.png"]),
        ("[images/train, images/train]", ["a.png", "b.png", "sub/d.png"]),
    ],
)
def test_links_are_followed_and_each_picture_is_read_once(root, train, expected):
    write_picture(root / "elsewhere" / "d.png", LABELS, root / "more" / "d.txt")
    (root / "images" / "train" / "sub").symlink_to(root / "elsewhere")
    (root / "labels" / "train" / "sub").symlink_to(root / "more")
    (root / "images" / "train" / "back").symlink_to(root / "images" / "train")
    (root / "data.yaml").write_text(f"train: {train}\nnames: [cat, dog]\n")
    pictures = {each.name: len(each.objects.labels) for each in open_yolo(root).pictures}
    assert list(pictures) == expected
    assert all(count == 2 for name, count in pictures.items() if not name.endswith("b.png"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.5 0.5", "line 2: class 2 must be 0 to 1, as in 'names'"),
        ("0.5 0.5 0.5 0.5 0.5", "line 2: class 0.5 must be 0 to 1, as in 'names'"),
        ("0 0.5 0.5 0.5", "line 2: has 3 numbers after the class, must be centre_x"),
        ("0 0.5 0.5 0.5 0.5 0.5", "line 2: has 5 numbers after the class, must be centre_x"),
        ("0 a 0.5 0.5 0.5", "line 2: is '0 a 0.5 0.5 0.5', must be numbers"),
        ("0 30 20 10 10", "line 2: is '0 30 20 10 10', must have fractions of the picture's"),
        ("0 0.5 nan 0.5 0.5", "line 2: is '0 0.5 nan 0.5 0.5', must have fractions"),
        ("0 0.5 0.5 -0.5 0.5", "line 2: is '0 0.5 0.5 -0.5 0.5', must have fractions"),
    ],
)
def test_a_broken_label_is_named(root, line, message):
    file = root / "labels" / "train" / "a.txt"
    file.write_text(f"0 0.5 0.5 0.5 0.5\n{line}\n")
    assert refusal(root).startswith(f"{file}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\n", "{file}: 'names' is None, must be a list of class names"),
        ("names: {1: cat}\ntrain: images/train\n", "{file}: 'names' is {1: 'cat'}, must be"),
        ("names: [cat]\nval: a\n", "split 'train': {file} has the splits val"),
        (
            "names: [cat]\ntrain: none\n",
            "{file}: there is no folder or list of pictures {root}",
        ),
        ("names: [cat]\ntrain: labels\n", "split 'train': no picture in labels of {root}"),
        ("names: {0: a, x: b}\n", "{file}: 'names' is {0: 'a', 'x': 'b'}, must be a list"),
        ("date: 2024-13-45\nnames: [a]\n", "{file}: is not YAML (month must be in 1..12"),
        ("names: [", "{file}: is not YAML (while parsing"),
        (
            "names: [a, 1, '1']\ntrain: images/train\n",
            "{file}: 'names' has '1' as class 1 and as class 2. Names must differ",
        ),
        (
            f"names: [a]\ntrain: {'x' * 300}\n",
            "{root}/" + "x" * 300 + ": cannot be read (File name",
        ),
        ("- a", "{file}: must have the keys 'train', 'val' and 'names'"),
    ],
)
def test_a_broken_data_file_is_named(root, text, message):
    file = root / "data.yaml"
    file.write_text(text)
    expected = message.replace("{file}", str(file)).replace("{root}", str(root))
    assert refusal(root).startswith(expected)


def test_a_folder_of_another_format_is_refused(tmp_path):
    assert refusal(tmp_path) == (
        f"{tmp_path / 'data.yaml'}: no such file. Choose the folder of a data.yaml, or its path, "
        "with --data.root, or another format with --data.dataset"
    )


def test_coco_points_to_this_format(root):
    with pytest.raises(UserError, match=r"Read it with --data\.dataset yolo$"):
        open_dataset(DataConfig(root=str(root)), "train")
