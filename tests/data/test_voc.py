"""Pascal VOC folders: XML files, lists of splits, and pixels that count from 1."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rpn_jax.config import DataConfig
from rpn_jax.data.catalog import open_dataset
from rpn_jax.data.dataset import training_boxes
from rpn_jax.errors import UserError
from tests.data.coco_folder import picture


def xml_object(name, box, difficult=0):
    sides = "".join(
        f"<{side}>{value}</{side}>"
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{sides}</bndbox>{part}</object>"
    )


def write_picture(file, number):
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), picture(number, 40, 60)[..., ::-1])


def write_xml(file, objects, size="<width>60</width><height>40</height><depth>3</depth>"):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"<annotation><size>{size}</size>{''.join(objects)}</annotation>")


@pytest.fixture
def root(tmp_path):
    """VOC's own layout: 2 pictures in 'train', 1 in 'test', class 'ant' only in the latter."""
    root = tmp_path / "VOC2007"
    for number, objects in (
        (1, [xml_object("cat", (1, 2, 31, 40)), xml_object("dog", ("10.9", 5, 20, 15), 1)]),
        (2, []),
        (3, [xml_object("ant", (3, 3, 60, 40))]),
    ):
        write_xml(root / "Annotations" / f"00{number}.xml", objects)
        write_picture(root / "JPEGImages" / f"00{number}.jpg", number)
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("002\n001\n")
    (lists / "test.txt").write_text("003\n")
    (lists / "cat_train.txt").write_text("002 -1\n001  1\n")
    return root


def open_voc(root, split="train"):
    return open_dataset(DataConfig(dataset="voc", root=str(root)), split)


def refusal(root, split="train"):
    with pytest.raises(UserError) as caught:
        open_voc(root, split)
    return str(caught.value)


def test_pictures_objects_and_classes(root):
    dataset = open_voc(root)
    assert dataset.class_names == ("ant", "cat", "dog")
    assert dataset.category_ids == (1, 2, 3)
    empty, first = dataset.pictures
    assert (empty.name, len(empty.objects.labels)) == ("002.jpg", 0)
    assert (first.image_id, first.name, first.height, first.width) == (2, "001.jpg", 40, 60)
    # Pixels count from 1, fractions are cut off: (1, 2, 31, 40) becomes (0, 1, 30, 39).
    assert first.objects.boxes_xywh.tolist() == [[0, 1, 30, 38], [9, 4, 10, 10]]
    assert first.objects.areas.tolist() == [30 * 38, 100]
    assert first.objects.labels.tolist() == [1, 2]
    assert first.objects.is_difficult.tolist() == [False, True]
    np.testing.assert_array_equal(training_boxes(first)[0], [[0, 1, 30, 39]])
    assert dataset.load_image(1).shape == (40, 60, 3)
    assert open_voc(root, "test").class_names == dataset.class_names
    assert [each.name for each in open_voc(root, "cat_train").pictures] == ["002.jpg", "001.jpg"]


def test_a_folder_of_another_format_is_refused(tmp_path):
    assert refusal(tmp_path).endswith("Splits there: none, so another --data.dataset may fit")


def test_xml_files_next_to_their_pictures(tmp_path):
    for split, name in (("train", "cat"), ("valid", "ant")):
        write_xml(tmp_path / split / "a.xml", [xml_object(name, (1, 1, 9, 9))], size="")
        write_picture(tmp_path / split / "a.png", 1)
    dataset = open_voc(tmp_path)
    assert dataset.class_names == ("ant", "cat")
    assert dataset.pictures[0].objects.labels.tolist() == [1]
    # The XML files state no size, so that it is read from the picture.
    assert (dataset.pictures[0].height, dataset.pictures[0].width) == (40, 60)
    assert dataset.load_image(0).shape == (40, 60, 3)
    assert refusal(tmp_path, "test").endswith("Splits there: train, valid")


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([xml_object("cat", (9, 1, 3, 9))], "object 'cat': 'bndbox' is {'xmin': '9', "),
        ([xml_object("cat", ("a", 1, 3, 9))], "object 'cat': 'bndbox' is {'xmin': 'a', "),
        (["<object></object>"], "an object has no 'name'"),
        ([xml_object("cat", (1, 1, "1e308", 9))], "object 'cat': 'bndbox' is {'xmin': '1', "),
        (["<object>"], "is not XML (mismatched tag"),
        ([xml_object("cat", (1, 1, 3, 9), "true")], "object 'cat': 'difficult' is 'true', must"),
    ],
)
def test_a_broken_xml_file_is_named(root, objects, message):
    write_xml(root / "Annotations" / "001.xml", objects)
    assert refusal(root).startswith(f"{root / 'Annotations' / '001.xml'}: {message}")


def test_an_xml_file_of_another_kind_is_named(root):
    file = root / "Annotations" / "001.xml"
    file.write_text('<annotation xmlns="http://a.b"><object/></annotation>')
    message = "its top element is <{http://a.b}annotation>, must be <annotation>"
    assert refusal(root) == f"{file}: {message}"


def test_stems_in_a_list_may_contain_spaces(root):
    for stem in ("photo", "photo (1)", "photo 1"):
        write_xml(root / "Annotations" / f"{stem}.xml", [])
        write_picture(root / "JPEGImages" / f"{stem}.jpg", 1)
    listed = root / "ImageSets" / "Main" / "train.txt"
    listed.write_text("photo (1)\nphoto 1\nphoto  -1\nphoto (1)  1 \n")
    names = [each.name for each in open_voc(root).pictures]
    assert names == ["photo (1).jpg", "photo 1.jpg", "photo.jpg", "photo (1).jpg"]
    listed.write_text("my pic\n")
    assert refusal(root).startswith(f"{root / 'Annotations' / 'my pic.xml'}: cannot be read")


def test_hidden_files_are_ignored_and_upper_case_ones_are_not(root, tmp_path):
    (root / "Annotations" / "._001.xml").write_text("what macOS writes next to a file")
    assert len(open_voc(root).pictures) == 2
    write_xml(tmp_path / "flat" / "train" / "a.XML", [])
    assert refusal(tmp_path / "flat").startswith(f"{tmp_path}/flat/train/a.xml: cannot be read")


@pytest.mark.parametrize(
    ("encoding", "message"),
    [("GBK", "multi-byte encodings are not supported"), ("Klingon", "unknown encoding: Klingon")],
)
def test_an_encoding_that_cannot_be_read_is_named(root, encoding, message):
    file = root / "Annotations" / "001.xml"
    file.write_text(f'<?xml version="1.0" encoding="{encoding}"?>{file.read_text()}')
    assert refusal(root) == f"{file}: cannot be read ({message}). Save it as UTF-8."


@pytest.mark.parametrize("width", ["1e999", "0", "1e20", "many"])
def test_a_size_that_is_not_valid_is_read_from_the_picture(root, width):
    size = f"<width>{width}</width><height>40</height>"
    write_xml(root / "Annotations" / "001.xml", [], size)
    (first, _) = sorted(open_voc(root).pictures, key=lambda picture: picture.name)
    assert (first.height, first.width) == (40, 60)


def test_files_may_lie_in_sub_folders(root):
    write_xml(root / "Annotations" / "sub" / "4.xml", [xml_object("owl", (1, 1, 9, 9))])
    write_picture(root / "JPEGImages" / "sub" / "4.png", 4)
    (root / "ImageSets" / "Main" / "inner.txt").write_text("sub/4\n001\n")
    dataset = open_voc(root, "inner")
    assert dataset.class_names == ("ant", "cat", "dog", "owl")
    assert [each.name for each in dataset.pictures] == ["sub/4.png", "001.jpg"]
    assert dataset.pictures[0].objects.labels.tolist() == [3]
    write_xml(root / "a" / "inner" / "4.xml", [xml_object("owl", (1, 1, 9, 9))])
    write_picture(root / "a" / "inner" / "4.png", 4)
    assert open_voc(root, "a/inner").class_names[-1] == "owl"


def test_a_list_in_utf_16_is_named(root):
    file = root / "ImageSets" / "Main" / "train.txt"
    file.write_bytes("001\n".encode("utf-16-le"))
    assert refusal(root) == f"{file}: is not UTF-8 text (it has null bytes). Save it as UTF-8."


def test_what_is_missing_is_named(root):
    assert refusal(root, "val") == (
        f"split 'val': there is no {root / 'ImageSets' / 'Main' / 'val'}.txt and no XML file in "
        f"{root / 'val'}. Splits there: cat_train, test, train"
    )
    (root / "JPEGImages" / "001.jpg").unlink()
    assert "001.jpg: no such picture" in refusal(root)


def test_a_box_outside_its_picture_is_refused(root):
    write_xml(root / "Annotations" / "001.xml", [xml_object("cat", (1, 1, 70, 9))])
    assert "annotation 1 of 001.jpg: bbox [0, 0, 69, 8]" in refusal(root)


def test_coco_points_to_this_format(root):
    with pytest.raises(UserError, match=r"Read them as Pascal VOC with --data\.dataset voc$"):
        open_dataset(DataConfig(root=str(root)), "train")
