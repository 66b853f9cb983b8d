"""Random changes of training pictures: boxes stay on their objects, and the seed decides all."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpn_jax.config import DataConfig
from rpn_jax.data import pipeline, plan
from rpn_jax.data.augment import Augmentation, crop_boxes, draw_window, jitter_colours
from rpn_jax.data.coco import open_coco
from rpn_jax.errors import UserError
from tests.data.coco_folder import annotation_file, box_entry, image_entry, picture

CONFIG = DataConfig(scale=(128, 96), batch_size=4, loader_threads=2)
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """6 pictures with three rectangles, each filled with the colour of its class, over grey."""
    root = tmp_path_factory.mktemp("augment")
    (root / "annotations").mkdir()
    (root / "train").mkdir()
    rng = np.random.default_rng(0)
    images: list[dict] = []
    boxes: list[dict] = []
    for number in range(1, 7):
        image = image_entry(number, *((96, 128) if number % 3 else (128, 96)))
        canvas = np.full((image["height"], image["width"], 3), 128, np.uint8)
        for label, colour in enumerate(COLOURS):
            x, y = (5 + 30 * label, int(rng.integers(5, 50)))
            width, height = rng.integers(12, 26, 2).tolist()
            canvas[y : y + height, x : x + width] = colour
            boxes.append(
                box_entry(len(boxes) + 1, number, [x, y, width, height], category_id=label + 1)
            )
        cv2.imwrite(str(root / "train" / image["file_name"]), canvas[..., ::-1])
        images.append(image)
    categories = [{"id": k, "name": str(k)} for k in (1, 2, 3)]
    coco = {"images": images, "annotations": boxes, "categories": categories}
    annotation_file(root).write_text(json.dumps(coco))
    return open_coco(root, "train", False)


def batches_of(dataset, config, count=12, first_step=0, seed=0):
    planned = plan.plan_training(dataset, config)
    return list(islice(pipeline.train_batches(dataset, planned, seed, first_step), count))


@pytest.mark.parametrize(
    "more",
    [
        {"scale_jitter": (0.5, 2.0)},
        {"crop_share": 0.4},
        {"scale_jitter": (0.3, 2.0), "crop_share": 0.5, "short_sides": (64, 96)},
    ],
)
def test_boxes_stay_on_their_objects(dataset, more):
    config = replace(CONFIG, **more)
    batches = batches_of(dataset, config)
    sizes = set()
    for batch in batches:
        assert batch.box_mask.any(axis=1).all()  # a crop always keeps a part of a box
        for image, (height, width), boxes, labels, mask in zip(
            batch.images,
            batch.image_sizes,
            batch.boxes_xyxy,
            batch.labels,
            batch.box_mask,
            strict=True,
        ):
            sizes.add((int(height), int(width)))
            assert not image[height:].any()
            assert not image[:, width:].any()
            assert (boxes[mask] >= 0).all()
            assert (boxes[mask] <= [width, height, width, height]).all()
            for (x1, y1, x2, y2), label in zip(boxes[mask], labels[mask], strict=True):
                if min(x2 - x1, y2 - y1) < 6:
                    continue
                inner = image[int(y1) + 2 : int(y2) - 2, int(x1) + 2 : int(x2) - 2]
                if inner.size:
                    np.testing.assert_allclose(
                        inner.reshape(-1, 3).mean(axis=0), COLOURS[label], atol=12
                    )
    assert len(sizes) > 10
    # The same seed gives the same pictures, also after a resume.
    for batch, other in zip(batches_of(dataset, config, 3, 9), batches[9:], strict=True):
        np.testing.assert_array_equal(batch.images, other.images)
        np.testing.assert_array_equal(batch.boxes_xyxy, other.boxes_xyxy)
    other_seed = batches_of(dataset, config, 3, seed=1)
    assert any(
        not np.array_equal(batch.image_sizes, other.image_sizes)
        for batch, other in zip(batches[:3], other_seed, strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.floats(0.1, 1.0),
)
def test_a_window_lies_in_the_picture_and_contains_a_box(seed, size, largest, share):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, (size[1], size[0]), (3, 2, 2)), axis=1)
    boxes = corners.reshape(-1, 4).astype(np.float32)
    augmentation = Augmentation((seed,), False, largest, share)
    top, left, height, width = window = draw_window(boxes, size, augmentation)
    assert 0 <= top <= top + height <= size[0]
    assert 0 <= left <= left + width <= size[1]
    assert height <= largest[0]
    assert width <= largest[1]
    cropped, is_left = crop_boxes(boxes, window)
    offset = [left, top, left, top]
    expected = np.clip(boxes - offset, 0, [width, height, width, height])
    np.testing.assert_allclose(cropped, expected, atol=1e-4)
    has_area = (boxes[:, 2:] - boxes[:, :2] > 0.01).all(axis=1)
    assert is_left.any() or not has_area[0]


def test_colours_change_and_boxes_do_not(dataset):
    config = replace(CONFIG, photometric_jitter=True)
    for batch, plain in zip(batches_of(dataset, config), batches_of(dataset, CONFIG), strict=True):
        np.testing.assert_array_equal(batch.boxes_xyxy, plain.boxes_xyxy)
        np.testing.assert_array_equal(batch.image_sizes, plain.image_sizes)
        assert (batch.images != plain.images).any()
    on_device = replace(config, resize="device")
    (batch,) = batches_of(dataset, on_device, 1)
    assert batch.pending_resize is not None
    with pytest.raises(UserError, match="crops are taken after the resize"):
        replace(on_device, crop_share=0.5)


def test_the_range_of_the_colour_changes():
    grey = np.full((4, 4, 3), 100, np.uint8)
    means = [
        float(jitter_colours(grey, Augmentation((k,), True, (4, 4), 1.0)).mean())
        for k in range(300)
    ]
    # Brightness adds up to 32, contrast multiplies by 0.5 to 1.5. Half of the pictures have none.
    assert min(means) >= (100 - 32) * 0.5 - 1
    assert max(means) <= (100 + 32) * 1.5 + 1
    assert min(means) < 50
    assert max(means) > 150
    assert 0.15 < np.mean(np.isclose(means, 100)) < 0.35
    coloured = picture(0, 16, 16)
    changed = jitter_colours(coloured, Augmentation((4,), True, (16, 16), 1.0))
    assert changed.dtype == np.uint8
    assert changed.shape == coloured.shape
