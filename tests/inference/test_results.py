"""Proposals of single pictures, out of a batch, into a file and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rpn_jax.errors import UserError
from rpn_jax.inference.results import (
    PictureDetections,
    PictureProposals,
    picture_detections,
    picture_proposals,
    to_xywh,
)
from rpn_jax.inference.results_file import (
    read_detections,
    read_results,
    write_detections,
    write_results,
)
from rpn_jax.structures import Detections, Proposals

NONE = PictureProposals(6, np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


def test_padded_proposals_are_left_out() -> None:
    boxes = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    batch = Proposals(
        boxes, np.array([[0.9, 0.5, 0], [0.1, 0, 0]], np.float32),
        np.array([[True, True, False], [True, False, False]]),
    )  # fmt: skip
    (first, second) = picture_proposals([7, 9], batch)
    assert (first.image_id, second.image_id) == (7, 9)
    np.testing.assert_array_equal(first.boxes_xyxy, boxes[0, :2])
    np.testing.assert_array_equal(first.scores, np.float32([0.9, 0.5]))
    np.testing.assert_array_equal(second.boxes_xyxy, boxes[1, :1])


def test_padded_detections_are_left_out() -> None:
    boxes = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    batch = Detections(
        boxes=boxes,
        scores=np.array([[0.9, 0.5, 0], [0.1, 0, 0]], np.float32),
        labels=np.array([[4, 0, 0], [2, 0, 0]], np.int32),
        valid=np.array([[True, True, False], [True, False, False]]),
    )
    (first, second) = picture_detections([7, 9], batch)
    assert (first.image_id, second.image_id) == (7, 9)
    np.testing.assert_array_equal(first.boxes_xyxy, boxes[0, :2])
    np.testing.assert_array_equal(first.scores, np.float32([0.9, 0.5]))
    assert first.labels.tolist() == [4, 0]
    assert second.labels.tolist() == [2]


def test_detections_survive_a_file_with_the_datasets_categories(tmp_path: Path) -> None:
    boxes = np.float32([[0, 0, 10, 20], [5.5, 6.25, 700, 800], [1, 1, 2, 2]])
    found = PictureDetections(7, boxes, np.float32([0.25, 0.75, 0.5]), np.int32([1, 0, 2]))
    nothing = PictureDetections(8, boxes[:0], np.float32([]), np.int32([]))
    path = tmp_path / "detections.json"
    write_detections(path, iter([found, nothing]), category_ids=(90, 3, 17))
    results = json.loads(path.read_text())
    assert [result["category_id"] for result in results] == [90, 17, 3]
    assert results[0] == {
        "image_id": 7, "category_id": 90, "bbox": [5.5, 6.25, 694.5, 793.75], "score": 0.75,
    }  # fmt: skip
    (read,) = read_detections(path, category_ids=(90, 3, 17))
    assert read.labels.tolist() == [0, 2, 1]
    np.testing.assert_array_equal(read.boxes_xyxy, boxes[[1, 2, 0]])
    np.testing.assert_array_equal(read.scores, np.float32([0.75, 0.5, 0.25]))
    assert (read.boxes_xyxy.dtype, read.labels.dtype) == (np.float32, np.int32)


def test_detections_of_an_unknown_category_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "detections.json"
    path.write_text('[{"image_id": 5, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 1}]')
    message = "image 5 has a detection of category 2, which the dataset does not have.*are 1, 3"
    with pytest.raises(UserError, match=message):
        read_detections(path, category_ids=(1, 3))
    path.write_text('[{"image_id": 5, "bbox": [0, 0, 1, 1], "score": 1}]')
    with pytest.raises(UserError, match="category_id"):
        read_detections(path, category_ids=(1, 3))
    assert read_results(path)[0].image_id == 5, "proposals need no category"


def test_results_survive_a_file_and_are_best_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 3000, (40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 900, (40, 2))], axis=1)
    scores = rng.uniform(0, 1, 40)
    path = tmp_path / "proposals.json"
    pictures = [PictureProposals(5, boxes.astype("f4"), scores.astype("f4")), NONE]
    write_results(path, iter(pictures))
    results = json.loads(path.read_text())
    assert [result["score"] for result in results] == sorted(scores.astype("f4"), reverse=True)
    assert {tuple(sorted(result)) for result in results} == {
        ("bbox", "category_id", "image_id", "score")
    }
    (read,) = read_results(path)
    best = np.argsort(-scores)
    assert read.image_id == 5
    np.testing.assert_array_equal(read.scores, scores[best].astype(np.float32))
    np.testing.assert_allclose(read.boxes_xyxy, boxes[best], atol=1e-3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["proposals.json"]


def test_corners_follow_exactly_from_widths_and_heights() -> None:
    """In float32 the rounding of a width moves the corner."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 3000, (100, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 900, (100, 2))], axis=1)
    boxes = boxes.astype(np.float32)
    xywh = to_xywh(boxes)
    np.testing.assert_array_equal(xywh[:, :2], boxes[:, :2])
    np.testing.assert_array_equal(xywh[:, :2] + xywh[:, 2:], boxes[:, 2:])


def test_no_proposals_at_all_are_an_empty_list(tmp_path: Path) -> None:
    write_results(tmp_path / "empty.json", [])
    assert json.loads((tmp_path / "empty.json").read_text()) == []
    assert read_results(tmp_path / "empty.json") == []


def test_a_write_that_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "proposals.json"
    write_results(path, [])

    def breaks_off() -> Any:
        yield PictureProposals(1, np.float32([[0, 0, 1, 1]]), np.float32([1]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_results(path, breaks_off())
    assert path.read_text() == "[]\n"
    assert list(tmp_path.iterdir()) == [path]


def test_results_that_cannot_be_written_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"proposals.json: cannot be written \("):
        write_results(tmp_path / "file" / "proposals.json", [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "is not JSON"),
        ('[{"image_id": 1}]', "bbox"),
        ('[{"image_id": 1, "bbox": [1, 2], "score": 1}]', "length 4"),
        ('{"a": 1}', "not COCO results"),
    ],
)
def test_results_that_are_none_are_told_in_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "proposals.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_results(path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_results(tmp_path / "missing.json")
