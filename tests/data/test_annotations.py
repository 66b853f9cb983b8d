"""Boxes in other units or of another form are named as such."""

from __future__ import annotations

import pytest

from rpn_jax.data.coco import open_coco
from rpn_jax.errors import UserError
from tests.data.coco_folder import box_entry, image_entry, write_coco_folder


def open_boxes(tmp_path, boxes, clip_boxes=False):
    """Open pictures of 60x40 (width x height), each with one of the boxes."""
    entries = [box_entry(number, number, box) for number, box in enumerate(boxes, start=1)]
    images = [image_entry(number) for number in range(1, len(boxes) + 1)]
    return open_coco(write_coco_folder(tmp_path, images, entries), "train", clip_boxes)


def refusal(tmp_path, boxes, clip_boxes=False) -> str:
    with pytest.raises(UserError) as caught:
        open_boxes(tmp_path, boxes, clip_boxes)
    return str(caught.value)


CORNERS = [[5 + k, 10 + k, 30 + k, 30 + k] for k in range(10)]


def test_corners_are_named(tmp_path):
    message = refusal(tmp_path, CORNERS[:3])
    assert "annotation 2 of 002.png: bbox [6, 11, 31, 31] (x, y, width, height)" in message
    assert "All 3 boxes fit into their pictures as corners (x1, y1, x2, y2)" in message
    assert message.endswith("write x2 - x1 and y2 - y1 as width and height")
    assert "clip" not in message


def test_corners_are_refused_even_if_boxes_are_clipped(tmp_path):
    corners = [[20, 10, 59, 39]] * 10
    assert "as corners (x1, y1, x2, y2)" in refusal(tmp_path, corners, clip_boxes=True)


def test_boxes_that_only_reach_out_are_still_clipped(tmp_path):
    assert len(open_boxes(tmp_path, [[2, 2, 60, 40]] * 10, clip_boxes=True).pictures) == 10
    corners_and_one_box = [[20, 10, 59, 39]] * 10 + [[30, 10, 20, 10]]
    assert len(open_boxes(tmp_path, corners_and_one_box, clip_boxes=True).pictures) == 11


@pytest.mark.parametrize("clip_boxes", [False, True])
def test_fractions_are_named(tmp_path, clip_boxes):
    message = refusal(tmp_path, [[0.1, 0.2, 0.5, 0.5], [0, 0, 1, 1]], clip_boxes)
    assert "all values of all 2 boxes are at most 1, so they look like fractions" in message
    assert "Multiply x and width by the picture's width" in message


def test_tiny_boxes_are_not_fractions(tmp_path):
    assert len(open_boxes(tmp_path, [[0, 0, 1, 1], [1, 1, 1, 1]]).pictures) == 2
    assert len(open_boxes(tmp_path, [[0.1, 0.2, 0.5, 0.5], [30, 20, 5, 5]]).pictures) == 2
