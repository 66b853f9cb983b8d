"""The two ways to a `Batch`: resized on the host, and from originals on the device."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import islice

import jax
import numpy as np
import pytest

from rpn_jax.config import DataConfig
from rpn_jax.data import pipeline, plan
from rpn_jax.data.coco import open_coco
from rpn_jax.data.dataset import Picture
from rpn_jax.data.on_device import finish_resize
from rpn_jax.errors import UserError
from rpn_jax.structures import Batch
from tests.data.coco_folder import box_entry, image_entry, write_coco_folder

HOST = DataConfig(
    scale=(96, 64),
    buckets=((96, 64), (64, 96), (64, 64)),
    batch_size=4,
    eval_batch_size=3,
    loader_threads=2,
)
DEVICE = replace(HOST, resize="device")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Pictures smaller and larger than their canvases, of three buckets."""
    sizes = [(40, 60), (64, 96), (130, 190), (100, 170), (60, 40), (200, 140), (50, 50)]
    images = [image_entry(number, *size) for number, size in enumerate(sizes, start=1)]
    annotations = [
        box_entry(10 * number + k, number, [2 + k, 3, 10 + number, 12])
        for number in range(1, len(sizes) + 1)
        for k in range(1 + number % 3)
    ]
    root = write_coco_folder(tmp_path_factory.mktemp("coco"), images, annotations)
    return open_coco(root, "train", clip_boxes=False)


def trained_on(dataset, config, count=8):
    planned = plan.plan_training(dataset, config)
    batches = pipeline.train_batches(dataset, planned, seed=0, first_step=1)
    return list(islice(batches, count))


def assert_same_but_for_a_grey_level(batch, other):
    assert isinstance(batch, Batch)
    assert batch.pending_resize is other.pending_resize is None
    for name in [field.name for field in fields(Batch) if field.name != "pending_resize"]:
        one, two = (np.asarray(getattr(each, name)) for each in (batch, other))
        assert one.dtype == two.dtype
        if name == "images":
            one, two = one.astype(np.int64), two.astype(np.int64)
            assert np.abs(one - two).max() <= 1
        else:
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_training_batches_are_the_same_both_ways(dataset, probability):
    host, device = (
        trained_on(dataset, replace(config, flip_probability=probability))
        for config in (HOST, DEVICE)
    )
    flipped = set()
    for resized, source in zip(host, device, strict=True):
        assert source.pending_resize is not None
        assert_same_but_for_a_grey_level(finish_resize(jax.device_put(source)), resized)
        flipped |= set(source.pending_resize.flipped.tolist())
    assert flipped == {0.0: {False}, 0.5: {False, True}, 1.0: {True}}[probability]


def test_evaluation_batches_are_the_same_both_ways_filled_up_places_too(dataset):
    host, device = (list(pipeline.eval_batches(dataset, config)) for config in (HOST, DEVICE))
    assert any((batch.indices < 0).any() for batch in host)
    for resized, source in zip(host, device, strict=True):
        assert_same_but_for_a_grey_level(finish_resize(jax.device_put(source)), resized)


def test_a_batch_that_is_resized_already_passes_as_it_is(dataset):
    (batch,) = trained_on(dataset, HOST, count=1)
    assert finish_resize(batch) is batch


def test_originals_travel_as_decoded_on_a_canvas_that_holds_the_largest(dataset):
    for source in trained_on(dataset, DEVICE):
        heights, widths = source.pending_resize.sizes.T
        canvas = source.images.shape[1:3]
        assert canvas == (128 * -(-heights.max() // 128), 128 * -(-widths.max() // 128))
        for slot, index in enumerate(source.indices):
            original = dataset.load_image(int(index))
            height, width, _ = original.shape
            np.testing.assert_array_equal(source.images[slot, :height, :width], original)
            assert source.images[slot].sum() == original.sum()


@pytest.mark.parametrize(
    ("sizes", "canvas"),
    [([(1, 1)], (128, 128)), ([(128, 129)], (128, 256)), ([(480, 640), (640, 427)], (640, 640))],
)
def test_canvas_of_originals(sizes, canvas):
    pictures = [Picture(1, "a", *size) for size in sizes]
    assert pipeline.originals_canvas(pictures) == canvas


def test_the_step_is_compiled_for_the_same_shapes_both_ways(dataset):
    def described(batch):
        return [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(batch)]

    on_device, stated = (
        [described(shapes) for shapes in plan.plan_training(dataset, config).batch_shapes()]
        for config in (DEVICE, HOST)
    )
    assert on_device == stated
    for source in trained_on(dataset, DEVICE):
        assert described(finish_resize(jax.device_put(source))) in stated


def test_a_broken_picture_reaches_the_caller_as_user_error(tmp_path):
    images = [image_entry(number) for number in range(1, 7)]
    boxes = [box_entry(number, number, [1, 1, 9, 9]) for number in range(1, 7)]
    root = write_coco_folder(tmp_path, images, boxes)
    folder = open_coco(root, "train", clip_boxes=False)
    (root / "train" / "004.png").write_text("no picture")
    with pytest.raises(UserError, match=r"^[^\n]*004\.png: is not a picture that OpenCV can read$"):
        list(pipeline.eval_batches(folder, DEVICE))
