"""Unusual COCO files: ids of other types, and boxes that only the outlines state."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask

from rpn_jax.data.coco import open_coco
from rpn_jax.data.coco_outlines import RunLengths, box_and_area
from rpn_jax.errors import UserError
from tests.data.coco_folder import annotation_file, box_entry, image_entry, write_coco_folder


def write_ids(root, image_ids, category_ids, annotation_ids):
    """Replace the ids 1, 2 ... of a COCO file by others."""
    coco = json.loads(annotation_file(root).read_text())
    coco["categories"] = [{"id": number, "name": str(number)} for number in category_ids]
    for image in coco["images"]:
        image["id"] = image_ids[image["id"] - 1]
    for box in coco["annotations"]:
        box["image_id"] = image_ids[box["image_id"] - 1]
        box["category_id"] = category_ids[box["category_id"] - 1]
        box["id"] = annotation_ids[box["id"] - 1]
    annotation_file(root).write_text(json.dumps(coco))


@pytest.mark.parametrize(
    ("image_ids", "category_ids", "annotation_ids", "expected"),
    [
        ([0, 7], [0, 4], [0, 5], ([0, 7], (0, 4), [0, 5])),
        ([3.0, 7.0], [2.0, 4.0], [1.0, 9.0], ([3, 7], (2, 4), [1, 9])),
        (["3", "7"], ["2", "4"], ["1", "9"], ([3, 7], (2, 4), [1, 9])),
        (["a3", "7"], ["cat", "2"], ["x", "1.5"], ([1, 2], (1, 2), [1, 2])),
        (["1" * 5000, "7"], [2, 3.0], [1, "2" * 5000], ([1, 2], (2, 3), [1, 2])),
        (["07", "7"], [1.5, 2.5], [1, "2"], ([1, 2], (1, 2), [1, 2])),
    ],
)
def test_ids_from_0_with_gaps_and_as_texts_or_floats(
    tmp_path, image_ids, category_ids, annotation_ids, expected
):
    boxes = [
        box_entry(1, 2, [1, 1, 9, 9], category_id=2),
        box_entry(2, 1, [2, 2, 9, 9], category_id=1),
    ]
    root = write_coco_folder(tmp_path, [image_entry(1), image_entry(2)], boxes)
    write_ids(root, image_ids, category_ids, annotation_ids)
    dataset = open_coco(root, "train", False)
    first, second = dataset.pictures
    assert [first.image_id, second.image_id] == expected[0]
    assert dataset.category_ids == expected[1]
    assert dataset.class_names == tuple(map(str, category_ids))
    assert [*second.objects.ids, *first.objects.ids] == expected[2]
    assert (first.objects.labels.tolist(), second.objects.labels.tolist()) == ([0], [1])
    assert first.objects.boxes_xywh.tolist() == [[2, 2, 9, 9]]


def test_an_id_may_be_a_number_in_one_place_and_a_text_in_another(tmp_path):
    boxes = [box_entry(1, "2", [1, 1, 9, 9], category_id="1")]
    root = write_coco_folder(tmp_path, [image_entry(1), image_entry(2)], boxes)
    pictures = open_coco(root, "train", False).pictures
    assert [len(picture.objects.labels) for picture in pictures] == [0, 1]


RUNS = {"size": [40, 60], "counts": [40 * 10 + 5, 3, 37, 3, 40 * 60 - 40 * 10 - 5 - 43]}
"""A mask of 3 rows and 2 columns with its corner at (10, 5)."""
COMPRESSED = mask.frPyObjects(RUNS, 40, 60)["counts"].decode()


def outlined(outline):
    box = {**box_entry(2, 1, None), "segmentation": outline}
    del box["bbox"]
    return box


@pytest.mark.parametrize(
    ("outline", "bbox", "area"),
    [
        ([[1.5, 2, 11.5, 2, 11.5, 7, 1.5, 7]], [1.5, 2, 10, 5], 50),
        ([[0, 0, 4, 0, 0, 4], [10, 10, 14, 10, 10, 13]], [0, 0, 14, 13], 14),
        (RUNS, [10, 5, 2, 3], 6),
        ({**RUNS, "counts": COMPRESSED}, [10, 5, 2, 3], 6),
    ],
)
def test_a_missing_box_is_computed_from_the_outline(tmp_path, outline, bbox, area):
    boxes = [box_entry(1, 1, [1, 1, 2, 2]), outlined(outline)]
    root = write_coco_folder(tmp_path, [image_entry(1)], boxes)
    objects = open_coco(root, "train", False).pictures[0].objects
    assert objects.boxes_xywh.tolist() == [[1, 1, 2, 2], bbox]
    assert objects.areas.tolist() == [4, area]


def test_a_missing_box_next_to_a_value_that_only_python_reads(tmp_path):
    boxes = [{**outlined(RUNS), "score": float("nan")}]
    root = write_coco_folder(tmp_path, [image_entry(1)], boxes)
    objects = open_coco(root, "train", False).pictures[0].objects
    assert objects.boxes_xywh.tolist() == [[10, 5, 2, 3]]


@pytest.mark.parametrize("outline", [[1, 1, 20, 1, 20, 20], "abc", {}, {**RUNS, "counts": None}])
def test_an_outline_that_no_box_needs_may_have_any_form(tmp_path, outline):
    boxes = [{**box_entry(1, 1, [1, 1, 2, 2]), "segmentation": outline}, outlined(RUNS)]
    root = write_coco_folder(tmp_path, [image_entry(1)], boxes)
    objects = open_coco(root, "train", False).pictures[0].objects
    assert objects.boxes_xywh.tolist() == [[1, 1, 2, 2], [10, 5, 2, 3]]


def test_compressed_runs_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for share in (0.01, 0.5, 0.99):
        pixels = np.asfortranarray(rng.random((40, 60)) < share, np.uint8)
        pixels[:, 20:40] = 1  # a long run
        encoded = mask.encode(pixels)
        outline = RunLengths((40, 60), encoded["counts"].decode())
        bbox, area = box_and_area(outline, (40, 60))
        assert bbox == tuple(mask.toBbox(encoded))
        assert area == mask.area(encoded)


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        (None, "'bbox' is None, must be [x, y, width, height]"),
        ([], "'bbox' is None, must be [x, y, width, height]"),
        ([[1, 2, 3]], "has no 'bbox', and its 'segmentation' is broken (a polygon needs 3 or"),
        ([[0, 0, 1e308, 0, 0, 1e308]], "has no 'bbox', and its 'segmentation' is broken (Expected"),
        ([["a"]], "has no 'bbox', and its 'segmentation' is broken (Expected"),
        (
            {"size": [40, 60], "counts": [5, 5]},
            "has no 'bbox', and its 'segmentation' is broken (its run lengths must be 0 to ",
        ),
        (
            {"size": [40, 60], "counts": [-5, 40 * 60 + 5]},
            "has no 'bbox', and its 'segmentation' is broken (its run lengths must be 0 to ",
        ),
        (
            {"size": [40, 60], "counts": [2**40]},
            "has no 'bbox', and its 'segmentation' is broken (its run lengths must be 0 to ",
        ),
        (
            {"size": [10, 10], "counts": [50, 50]},
            "has no 'bbox', and its 'segmentation' is broken (its size is [10, 10], but that of "
            "its picture is (40, 60))",
        ),
        (
            {"size": [40, 60], "counts": "zzz"},
            "has no 'bbox', and its 'segmentation' is broken ('z' is not a character of",
        ),
        (
            {"size": [40, 60], "counts": "é"},
            "has no 'bbox', and its 'segmentation' is broken ('é' is not a character of",
        ),
        (
            {"size": [40, 60], "counts": COMPRESSED[:-1]},
            "has no 'bbox', and its 'segmentation' is broken (its run lengths must be 0 to ",
        ),
    ],
)
def test_a_missing_box_with_a_broken_outline_is_named(tmp_path, outline, message):
    root = write_coco_folder(tmp_path, [image_entry(1)], [outlined(outline)])
    with pytest.raises(UserError) as caught:
        open_coco(root, "train", False)
    assert str(caught.value).startswith(f"{annotation_file(root)}: annotation 2: {message}")


def test_urls_take_the_place_of_file_names_as_in_lvis(tmp_path):
    inner = {**image_entry(1), "file_name": "val2017/001.png"}
    root = write_coco_folder(tmp_path, [inner], [box_entry(1, 1, [2, 2, 9, 9])])
    coco = json.loads(annotation_file(root).read_text())
    del coco["images"][0]["file_name"]
    url = "http://images.cocodataset.org/val2017/001.png"
    for value, problem in ((url, ""), (7, "must be a text"), ("http://a.org", "must be a text")):
        coco["images"][0]["coco_url"] = value
        annotation_file(root).write_text(json.dumps(coco))
        if problem:
            with pytest.raises(UserError, match=f"image number 0: 'file_name' is None, {problem}"):
                open_coco(root, "train", False)
        else:
            dataset = open_coco(root, "train", False)
            assert dataset.pictures[0].name == "val2017/001.png"
            assert dataset.load_image(0).shape == (40, 60, 3)
