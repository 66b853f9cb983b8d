from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from rpn_jax.data.files import PictureFiles, find_pictures
from rpn_jax.errors import UserError
from tests.data.coco_folder import picture


@pytest.fixture
def folder(tmp_path):
    for name, height, width in (("b.jpg", 20, 30), ("a.PNG", 31, 17), ("in[1].png", 8, 9)):
        cv2.imwrite(str(tmp_path / name), picture(0, height, width))
    (tmp_path / "._b.jpg").write_text("what macOS writes next to a file")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "deeper").mkdir()
    cv2.imwrite(str(tmp_path / "deeper" / "c.png"), picture(0, 5, 5))
    return tmp_path


def names(paths):
    return [path.name for path in paths]


def test_folder_gives_its_own_pictures_sorted(folder):
    assert names(find_pictures([str(folder)])) == ["a.PNG", "b.jpg", "in[1].png"]


def test_files_globs_and_folders_keep_their_order_each_once(folder):
    patterns = [str(folder / "b.jpg"), str(folder / "*.*g"), str(folder / "deeper")]
    assert names(find_pictures(patterns)) == ["b.jpg", "in[1].png", "c.png"]


def test_file_with_glob_characters_in_its_name(folder):
    assert names(find_pictures([str(folder / "in[1].png")])) == ["in[1].png"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none.jpg", "none.jpg: no such picture"),
        ("*.gif", r"\*.gif: no such picture"),
        ("empty", "empty: no picture in this folder"),
    ],
)
def test_pattern_without_pictures_is_refused(folder, pattern, message):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        find_pictures([str(folder), str(folder / pattern)])


@pytest.mark.parametrize("name", ["deeper", "deeper/c.png"])
def test_unreadable_folder_is_named(folder, forbid, name):
    forbid(folder / "deeper")
    with pytest.raises(UserError, match=rf"{name}: cannot be read \(Permission denied\)$"):
        find_pictures([str(folder / name)])


def test_impossible_name_is_named():
    with pytest.raises(UserError, match=r"aaa: cannot be read \(File name too long\)$"):
        find_pictures(["a" * 300])


def test_sizes_are_known_without_decoding_and_right(folder):
    dataset = PictureFiles(find_pictures([str(folder)]))
    assert [(p.height, p.width) for p in dataset.pictures] == [(31, 17), (20, 30), (8, 9)]
    assert [p.image_id for p in dataset.pictures] == [1, 2, 3]
    for index, entry in enumerate(dataset.pictures):
        assert dataset.load_image(index).shape == (entry.height, entry.width, 3)
        assert entry.objects.boxes_xywh.shape == (0, 4)


def test_named_file_that_is_no_picture_is_refused(folder):
    with pytest.raises(UserError, match=r"notes\.txt: is not a picture$"):
        PictureFiles([folder / "notes.txt"])


def test_every_header_is_read_before_any_picture(folder):
    (folder / "z.jpg").write_bytes((folder / "b.jpg").read_bytes()[:20])
    with pytest.raises(UserError, match=r"z\.jpg: is not a picture$"):
        PictureFiles(find_pictures([str(folder)]))


def test_arrays_are_pictures_too(folder):
    array = picture(1, 12, 14)
    dataset = PictureFiles([folder / "b.jpg", array])
    assert [(p.height, p.width) for p in dataset.pictures] == [(20, 30), (12, 14)]
    np.testing.assert_array_equal(dataset.load_image(1), array)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), r"float32\[4, 5, 3\]"),
        (np.zeros((4, 5), np.uint8), r"uint8\[4, 5\]"),
        (np.zeros((4, 5, 4), np.uint8), r"uint8\[4, 5, 4\]"),
        (np.zeros((0, 5, 3), np.uint8), r"uint8\[0, 5, 3\]"),
    ],
)
def test_array_that_is_no_picture_is_refused(array, message):
    with pytest.raises(UserError, match=f"^picture 1 is an array of {message}: must be RGB pixels"):
        PictureFiles([array])


@pytest.mark.parametrize("item", [Image.new("RGB", (4, 4)), [[[0, 0, 0]]], None, b"a.jpg"])
def test_neither_path_nor_array_is_refused(item):
    message = f"^picture 1 is of type {type(item).__name__}: must be a path, or a NumPy array"
    with pytest.raises(UserError, match=message):
        PictureFiles([item])
