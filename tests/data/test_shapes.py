from __future__ import annotations

import numpy as np
import pytest

from rpn_jax.config import DataConfig
from rpn_jax.data import shapes
from rpn_jax.data.catalog import open_dataset
from rpn_jax.data.dataset import training_boxes
from rpn_jax.errors import UserError


@pytest.fixture(scope="module")
def train():
    return open_dataset(DataConfig(dataset="shapes"), "train")


@pytest.fixture(scope="module")
def held_out():
    return open_dataset(DataConfig(dataset="shapes"), "eval")


def box_iou(a: np.ndarray, b: np.ndarray) -> float:
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    overlap = max(width, 0) * max(height, 0)
    return overlap / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - overlap)


def test_a_picture_depends_only_on_split_and_index(held_out):
    again = shapes.Shapes("eval")
    for index in (0, 7, 7, 3):  # in any order, any number of times
        np.testing.assert_array_equal(held_out.load_image(index), again.load_image(index))
        one, other = (each.pictures[index].objects for each in (held_out, again))
        np.testing.assert_array_equal(one.boxes_xywh, other.boxes_xywh)
        np.testing.assert_array_equal(one.labels, other.labels)
    drawn = shapes.draw_scene(shapes.plan_scene("eval", 7))
    np.testing.assert_array_equal(drawn, held_out.load_image(7))


def test_no_picture_is_in_both_splits_or_twice(train, held_out):
    scenes = [
        tuple(picture.objects.boxes_xywh.ravel().tolist())
        for picture in (*train.pictures, *held_out.pictures)
    ]
    assert len(set(scenes)) == len(scenes) == sum(shapes.SPLIT_SIZES.values())
    assert not np.array_equal(train.load_image(0), held_out.load_image(0))


def test_sizes_and_boxes(train, held_out):
    for picture in (*train.pictures, *held_out.pictures):
        assert (picture.height, picture.width) in {(240, 320), (320, 240)}
        boxes_xyxy, _ = training_boxes(picture)
        x1, y1, x2, y2 = boxes_xyxy.T
        assert (x1 >= 0).all()
        assert (y1 >= 0).all()
        assert (x2 <= picture.width).all()
        assert (y2 <= picture.height).all()
        assert (np.minimum(x2 - x1, y2 - y1) >= shapes.MIN_SIDE).all()
        assert 1 <= len(boxes_xyxy) < shapes.FIGURES[1]
    portraits = np.mean([picture.height > picture.width for picture in train.pictures])
    assert 0.15 < portraits < 0.35
    image = held_out.load_image(0)
    assert image.shape == (held_out.pictures[0].height, held_out.pictures[0].width, 3)
    assert image.dtype == np.uint8


@pytest.mark.parametrize("index", range(6))
def test_boxes_are_tight_round_what_is_drawn(index):
    scene = shapes.plan_scene("train", index)
    for figure in scene.figures:
        single = shapes.Scene(scene.height, scene.width, (figure,), scene.background_seed)
        nothing = shapes.Scene(scene.height, scene.width, (), scene.background_seed)
        drawn = shapes.draw_scene(single).astype(int) - shapes.draw_scene(nothing)
        rows, columns = np.nonzero(np.abs(drawn).max(axis=2) > 0)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        # Soft edges, and figures as bright as what is under them, may lose a pixel or two.
        np.testing.assert_allclose(found, figure.box_xyxy, atol=2)


def test_enough_of_each_figure_can_be_seen():
    for index in range(40):
        scene = shapes.plan_scene("eval", index)
        masks = [
            shapes._mask(figure.outlines, scene.height, scene.width) > 0 for figure in scene.figures
        ]
        for position, mask in enumerate(masks):
            over = np.zeros_like(mask)
            for later in masks[position + 1 :]:
                over |= later
            assert (mask & ~over).sum() >= shapes.MIN_VISIBLE * mask.sum()


def test_it_is_hard_enough(train):
    """Several figures, of many sizes and kinds, that overlap."""
    boxes = [training_boxes(picture)[0] for picture in train.pictures]
    sides = np.concatenate([np.sqrt(np.prod(b[:, 2:] - b[:, :2], axis=1)) for b in boxes])
    assert len(sides) > 4 * len(boxes)
    small, large = np.mean(sides < 64), np.mean(sides > 96)
    assert 0.2 < small < 0.5
    assert 0.2 < large < 0.5
    overlapping = sum(
        any(box_iou(box, other) > 0.1 for other in np.delete(of_picture, position, axis=0))
        for of_picture in boxes
        for position, box in enumerate(of_picture)
    )
    assert overlapping > 0.2 * len(sides)
    labels = np.concatenate([picture.objects.labels for picture in train.pictures])
    assert set(labels.tolist()) == set(range(len(train.class_names)))


def test_all_objects_are_trained_on(held_out):
    for picture, scene in zip(held_out.pictures, held_out._scenes, strict=True):
        boxes_xyxy, labels = training_boxes(picture)
        expected = np.array([figure.box_xyxy for figure in scene.figures]).reshape(-1, 4)
        np.testing.assert_array_equal(boxes_xyxy, expected)
        kinds = [held_out.class_names[label] for label in labels]
        assert kinds == [figure.kind for figure in scene.figures]
    ids = np.concatenate([picture.objects.ids for picture in held_out.pictures])
    assert ids.tolist() == [*range(1, len(ids) + 1)]


def test_other_splits_are_refused():
    with pytest.raises(UserError, match=r"^split 'val2017': the built-in shapes have train, eval$"):
        shapes.Shapes("val2017")
