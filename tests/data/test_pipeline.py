from __future__ import annotations

import zlib
from dataclasses import replace
from itertools import islice

import cv2
import jax
import numpy as np
import pytest

from rpn_jax.config import DataConfig, load_config
from rpn_jax.data import pipeline, plan
from rpn_jax.data.catalog import open_dataset
from rpn_jax.data.coco import open_coco
from rpn_jax.data.dataset import Picture, training_boxes
from rpn_jax.errors import UserError
from tests.data.coco_folder import box_entry, image_entry, write_coco_folder
from tests.golden_files import BCCD

CONFIG = DataConfig(
    scale=(96, 64),
    buckets=((96, 64), (64, 96), (64, 64)),
    batch_size=4,
    eval_batch_size=3,
    loader_threads=2,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """11 pictures: 5 landscape, 3 portrait, 1 square, 1 without boxes, 1 too small."""
    sizes = [(40, 60)] * 5 + [(60, 40)] * 3 + [(50, 50), (40, 60), (20, 30)]
    images = [image_entry(number, *size) for number, size in enumerate(sizes, start=1)]
    annotations = [
        box_entry(100 * number + k, number, [2 + k, 3, 10 + number, 12])
        for number in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11)
        for k in range(1 + number % 3)
    ]
    root = write_coco_folder(tmp_path_factory.mktemp("coco"), images, annotations)
    return open_coco(root, "train", clip_boxes=False)


def train_batches(dataset, config, seed=0, first_step=0):
    return pipeline.train_batches(dataset, plan.plan_training(dataset, config), seed, first_step)


def take(dataset, count, seed=0, first_step=0, config=CONFIG):
    return list(islice(train_batches(dataset, config, seed, first_step), count))


def assert_equal(batch, other):
    jax.tree.map(np.testing.assert_array_equal, batch, other)


def test_smallest_bucket_that_holds_a_picture():
    sizes = [(40, 60), (60, 40), (50, 50), (30, 40), (51, 50)]
    layout = plan.plan_layout([Picture(1, "a", *size) for size in sizes], CONFIG)
    resized = [(64, 96), (96, 64), (64, 64), (64, 85), (65, 64)]
    np.testing.assert_array_equal(layout.sizes, resized)
    np.testing.assert_array_equal(layout.buckets, [1, 0, 2, 1, 0])


def test_exact_padding_adds_a_bucket_for_each_size_that_occurs(dataset):
    """The resized sizes are multiples of 32 already, so nothing is added to them."""
    config = replace(CONFIG, buckets=((96, 96),))
    exact = plan.with_exact_padding(dataset, config)
    assert exact == replace(config, buckets=((64, 64), (64, 96), (96, 64), (96, 96)))


def test_only_large_pictures_with_boxes_are_trained_on(dataset):
    def trained(config):
        return sorted(np.concatenate(plan.plan_training(dataset, config).groups).tolist())

    assert trained(CONFIG) == [*range(9)]
    # Both sides count: the last picture has 20x30 pixels.
    assert trained(replace(CONFIG, min_image_size=25)) == [*range(9)]
    assert trained(replace(CONFIG, min_image_size=20)) == [*range(9), 10]
    with pytest.raises(UserError, match=r"none of 11 has .* data\.min_image_size = 1000 pixels$"):
        plan.plan_training(dataset, replace(CONFIG, min_image_size=1000))


def test_an_epoch_shows_every_picture_in_full_batches_of_one_bucket(dataset):
    steps = plan.plan_training(dataset, CONFIG).epoch_steps
    assert steps == 2 + 1 + 1  # 5 landscape, 3 portrait, 1 square, 4 a batch
    shapes = {(64, 96, 3): {0, 1, 2, 3, 4}, (96, 64, 3): {5, 6, 7}, (64, 64, 3): {8}}
    for epoch in range(3):
        batches = take(dataset, steps, first_step=epoch * steps)
        shown = []
        for batch in batches:
            assert set(batch.indices.tolist()) <= shapes[batch.images.shape[1:]]
            shown += batch.indices.tolist()
        assert len(shown) == steps * CONFIG.batch_size
        assert set(shown) == set(range(9))
        landscape = [index for index in shown if index < 5]
        # 5 pictures fill 8 places: three of them come twice, none three times.
        assert sorted(np.bincount(landscape).tolist()) == [1, 1, 2, 2, 2]


def test_order_and_flips_change_with_epoch_and_seed(dataset):
    def order(seed, epoch):
        planned = plan.plan_epoch([np.arange(50)], CONFIG, seed, epoch)
        return planned.indices.tolist(), planned.flips.tolist()

    assert order(0, 0) == order(0, 0)
    assert len({str(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert order(0, 1) != order(1, 0)


def test_the_pictures_of_a_batch_change_and_are_flipped_one_by_one():
    epochs = [plan.plan_epoch([np.arange(40)], CONFIG, 0, epoch) for epoch in (0, 1)]
    together = [{frozenset(row) for row in each.indices.tolist()} for each in epochs]
    assert together[0] != together[1]
    flips = np.concatenate([each.flips for each in epochs])
    assert (flips.any(axis=1) & ~flips.all(axis=1)).any()


def test_batches_of_buckets_are_mixed():
    groups = [np.arange(40), np.arange(40, 80)]
    first = plan.plan_epoch(groups, CONFIG, 0, 0).indices[:, 0] < 40
    assert sorted(first.tolist()) != first.tolist()
    assert sorted(first.tolist(), reverse=True) != first.tolist()


@pytest.mark.parametrize("threads", [1, 3])
def test_resumed_run_sees_what_an_uninterrupted_one_would(dataset, threads):
    whole = take(dataset, 10)
    config = replace(CONFIG, loader_threads=threads)
    for first_step in (1, 4, 7):
        rest = take(dataset, 10 - first_step, first_step=first_step, config=config)
        for batch, other in zip(whole[first_step:], rest, strict=True):
            assert_equal(batch, other)


def expected_picture(dataset, index, flipped):
    """Resized with OpenCV, and its boxes, worked out by hand for pictures of 40x60."""
    image = cv2.resize(dataset.load_image(index), (96, 64), interpolation=cv2.INTER_LINEAR)
    x1, y1, x2, y2 = (training_boxes(dataset.pictures[index])[0] * 1.6).T
    if flipped:
        image, x1, x2 = cv2.flip(image, 1), 96 - x2, 96 - x1
    return image, np.stack([x1, y1, x2, y2], axis=1)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_pixels_and_boxes_of_a_batch(dataset, probability):
    config = replace(CONFIG, flip_probability=probability)
    flips = []
    for batch in take(dataset, 12, config=config):
        assert batch.boxes_xyxy.shape == (4, 8, 4)
        assert batch.boxes_xyxy.dtype == np.float32
        np.testing.assert_array_equal(batch.boxes_xyxy[~batch.box_mask], 0)
        for slot, index in enumerate(batch.indices.tolist()):
            if index >= 5:
                continue
            candidates = [expected_picture(dataset, index, flipped) for flipped in (False, True)]
            equal = [np.array_equal(batch.images[slot], image) for image, _ in candidates]
            assert sum(equal) == 1
            flips.append(equal[1])
            boxes_xyxy = batch.boxes_xyxy[slot][batch.box_mask[slot]]
            np.testing.assert_allclose(boxes_xyxy, candidates[equal[1]][1], rtol=1e-5)
            np.testing.assert_array_equal(batch.image_sizes[slot], [64, 96])
            np.testing.assert_allclose(batch.scale_factors[slot], [1.6, 1.6], rtol=1e-6)
    assert set(flips) == {0.0: {False}, 0.5: {False, True}, 1.0: {True}}[probability]


def test_padding_is_black_and_sizes_are_before_padding(tmp_path):
    root = write_coco_folder(tmp_path, [image_entry(1, 33, 44)], [box_entry(1, 1, [0, 0, 44, 33])])
    folder = open_coco(root, "train", clip_boxes=False)
    config = replace(CONFIG, batch_size=1, flip_probability=1.0)
    (batch,) = take(folder, 1, config=config)
    np.testing.assert_array_equal(batch.image_sizes, [[64, 85]])
    np.testing.assert_allclose(batch.scale_factors, [[85 / 44, 64 / 33]], rtol=1e-6)
    assert batch.images.shape == (1, 64, 96, 3)
    assert batch.images[:, :, :85].any()
    assert not batch.images[:, :, 85:].any()
    # Mirrored within its own width, not the canvas's.
    np.testing.assert_allclose(batch.boxes_xyxy[0, 0], [0, 0, 85, 64])


def test_boxes_are_padded_to_a_multiple_of_eight(tmp_path):
    for count, padded in ((0, 8), (1, 8), (8, 8), (9, 16)):
        boxes = [box_entry(k + 1, 1, [k, 0, 9, 9]) for k in range(count)]
        root = write_coco_folder(tmp_path, [image_entry(1)], boxes)
        pictures = open_coco(root, "train", clip_boxes=False).pictures
        assert plan.plan_layout(pictures, CONFIG).num_boxes == padded


def test_shapes_for_compilation_are_those_of_the_batches(dataset):
    def described(batch):
        return tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(batch))

    seen = {described(batch) for batch in take(dataset, 4)}
    stated = [described(shapes) for shapes in plan.plan_training(dataset, CONFIG).batch_shapes()]
    assert len(stated) == 3
    assert set(stated) == seen
    # A bucket that only pictures without boxes would use is not compiled.
    wide = replace(CONFIG, buckets=(*CONFIG.buckets, (96, 96)))
    assert len(plan.plan_training(dataset, wide).batch_shapes()) == 3


def test_evaluation_shows_every_picture_once_in_order(dataset):
    batches = list(pipeline.eval_batches(dataset, CONFIG))
    assert [batch.indices.tolist() for batch in batches] == [
        [5, 6, 7],
        [0, 1, 2],
        [3, 4, 9],
        [10, -1, -1],
        [8, -1, -1],
    ]
    for batch in batches:
        for slot in np.flatnonzero(batch.indices < 0):
            np.testing.assert_array_equal(batch.image_sizes[slot], [1, 1])
            np.testing.assert_array_equal(batch.scale_factors[slot], [1, 1])
            assert not batch.images[slot].any()
            assert not batch.box_mask[slot].any()
    image, _ = expected_picture(dataset, 1, flipped=False)
    np.testing.assert_array_equal(batches[1].images[1], image)
    np.testing.assert_array_equal(batches[2].box_mask.sum(axis=1), [2, 3, 0])


def test_a_broken_picture_reaches_the_caller_as_user_error(tmp_path):
    images = [image_entry(number) for number in range(1, 7)]
    boxes = [box_entry(number, number, [1, 1, 9, 9]) for number in range(1, 7)]
    root = write_coco_folder(tmp_path, images, boxes)
    folder = open_coco(root, "train", clip_boxes=False)
    (root / "train" / "004.png").write_text("no picture")
    with pytest.raises(UserError, match=r"^[^\n]*004\.png: is not a picture that OpenCV can read$"):
        take(folder, 2)
    with pytest.raises(UserError, match=r"^[^\n]*004\.png: is not a picture that OpenCV can read$"):
        list(pipeline.eval_batches(folder, CONFIG))


def test_prefetch_places_ahead_and_keeps_the_order():
    log = []

    def batches():
        for number in range(5):
            log.append(f"read {number}")
            yield number

    def place(number):
        log.append(f"place {number}")
        return f"on device {number}"

    used = []
    for item in pipeline.prefetch(batches(), place, size=2):
        used.append(item)
        log.append("use")
    assert used == [f"on device {number}" for number in range(5)]
    ahead = [log[: i + 1].count("use") for i, entry in enumerate(log) if entry.startswith("place")]
    # Batch k is placed before batch k - 1 is used.
    assert ahead == [0, 0, 1, 2, 3]


def test_batches_are_those_of_version_0_1():
    """Order, flips, boxes and pixels of these batches were recorded with version 0.1."""
    config = replace(load_config("rpn_r18_fpn_gn_small").data, root=str(BCCD))
    train = open_dataset(config, "train")
    batches = take(train, 4, first_step=50, config=config)
    assert [batch.indices.tolist() for batch in batches] == [
        [21, 159, 128, 62],
        [0, 102, 196, 126],
        [53, 84, 83, 165],
        [92, 50, 12, 99],
    ]
    checksum = 0
    for batch in batches:
        truth = (batch.boxes_xyxy, batch.labels, batch.image_sizes, batch.box_mask)
        for array in (batch.indices, *truth):
            checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    assert checksum == 1876257950
    # Other versions of OpenCV may decode a few pixels to a neighbouring grey level.
    means = [float(batch.images.mean()) for batch in batches]
    np.testing.assert_allclose(means, [169.914, 172.198, 174.008, 171.081], atol=0.01)


def test_bccd_in_small():
    config = DataConfig(
        root=str(BCCD),
        scale=(320, 240),
        buckets=((256, 320), (320, 256)),
        batch_size=4,
        eval_batch_size=5,
        loader_threads=2,
    )
    train = open_dataset(config, "train")
    planned = plan.plan_training(train, config)
    assert planned.epoch_steps == 52  # 205 pictures
    assert len(planned.batch_shapes()) == 1
    batch = next(train_batches(train, config))
    assert batch.images.shape == (4, 256, 320, 3)
    assert batch.images.dtype == np.uint8
    assert not batch.images[:, 240:].any()
    np.testing.assert_array_equal(batch.scale_factors, np.full((4, 2), 0.5))
    x1, y1, x2, y2 = batch.boxes_xyxy[batch.box_mask].T
    assert (x1 < x2).all()
    assert (y1 < y2).all()
    assert x2.max() <= 320
    assert y2.max() <= 240

    test = open_dataset(config, "test")
    indices = np.concatenate([batch.indices for batch in pipeline.eval_batches(test, config)])
    assert sorted(indices[indices >= 0].tolist()) == list(range(72))


def test_pictures_with_crowds_alone_are_trained_on_without_boxes(tmp_path):
    objects = [
        box_entry(1, 1, [2, 3, 10, 12]),
        box_entry(2, 2, [2, 3, 10, 12], iscrowd=1),
        box_entry(3, 3, [2, 3, 10, 12], area=0),
    ]
    root = write_coco_folder(tmp_path, [image_entry(number) for number in range(1, 5)], objects)
    dataset = open_coco(root, "train", False)
    counts = {}
    for batch in take(dataset, 6, config=replace(CONFIG, batch_size=1)):
        counts[int(batch.indices[0])] = int(batch.box_mask.sum())
    assert counts == {0: 1, 1: 0, 2: 0}
    without = [{**entry, "iscrowd": 1} for entry in objects]
    root = write_coco_folder(tmp_path / "crowds", [image_entry(1)], without[:1])
    with pytest.raises(UserError, match="none of 1 has a box"):
        plan.plan_training(open_coco(root, "train", False), CONFIG)


@pytest.fixture
def bad_dataset(tmp_path):
    """6 pictures of one bucket with a box each. Pictures 2 and 4 (positions 1, 3) are broken."""
    images = [image_entry(number) for number in range(1, 7)]
    boxes = [box_entry(number, number, [2, 3, 10, 12]) for number in range(1, 7)]
    root = write_coco_folder(tmp_path, images, boxes)
    for number in (2, 4):
        (root / "train" / f"00{number}.png").write_text("no picture")
    return open_coco(root, "train", False)


SKIP = replace(CONFIG, on_bad_picture="skip")


def test_bad_pictures_are_replaced_in_training(bad_dataset, capsys):
    batches = take(bad_dataset, 6, config=SKIP)
    shown = np.concatenate([batch.indices for batch in batches])
    assert set(shown.tolist()) == {0, 2, 4, 5}
    assert all(batch.box_mask.any(axis=1).all() for batch in batches)
    for batch, other in zip(take(bad_dataset, 3, 0, 3, SKIP), batches[3:], strict=True):
        assert_equal(batch, other)
    lines = set(capsys.readouterr().err.splitlines())
    assert len(lines) == 2  # each bad picture once for each iterator
    assert all(line.startswith("skipped: ") for line in lines)


def test_the_other_pictures_stay_at_their_places(bad_dataset):
    planned = plan.plan_training(bad_dataset, SKIP)
    epoch = plan.plan_epoch(planned.groups, SKIP, 0, 0)
    for batch, row in zip(take(bad_dataset, 2, config=SKIP), epoch.indices, strict=True):
        is_good = ~np.isin(row, [1, 3])
        np.testing.assert_array_equal(batch.indices[is_good], row[is_good])


@pytest.mark.parametrize("resize", ["host", "device"])
def test_bad_pictures_are_empty_in_evaluation(bad_dataset, resize):
    batches = list(pipeline.eval_batches(bad_dataset, replace(SKIP, resize=resize)))
    indices = np.concatenate([batch.indices for batch in batches])
    assert sorted(indices.tolist()) == [-1, -1, 0, 2, 4, 5]


@pytest.mark.parametrize("resize", ["host", "device"])
def test_the_batch_of_a_bad_picture_has_its_canvas(tmp_path, resize):
    images = [image_entry(number, 40 + 100 * (number % 2), 60) for number in range(1, 5)]
    root = write_coco_folder(tmp_path, images, [])
    good = open_coco(root, "train", False)
    config = replace(SKIP, resize=resize, eval_batch_size=1)
    canvases = [batch.images.shape for batch in pipeline.eval_batches(good, config)]
    assert len(set(canvases)) > 1
    for number in (1, 2):
        (root / "train" / f"00{number}.png").write_text("no picture")
    bad = open_coco(root, "train", False)
    assert [batch.images.shape for batch in pipeline.eval_batches(bad, config)] == canvases


def test_too_many_bad_pictures_are_an_error(bad_dataset):
    config = replace(SKIP, max_bad_pictures=1)
    with pytest.raises(UserError, match=r"More than data\.max_bad_pictures = 1 pictures cannot"):
        list(pipeline.eval_batches(bad_dataset, config))
    with pytest.raises(UserError, match=r"is not a picture that OpenCV can read$"):
        list(pipeline.eval_batches(bad_dataset, CONFIG))


@pytest.mark.parametrize(
    ("more", "sides"),
    [
        ({"short_sides": (32, 48, 64)}, {32, 48, 64}),
        ({"short_side_range": (40, 44)}, range(40, 45)),
    ],
)
def test_multi_scale_training_draws_a_short_side_for_each_picture(dataset, more, sides):
    config = replace(CONFIG, **more)
    batches = take(dataset, 24, config=config)
    shown = set()
    for batch, plain in zip(batches, take(dataset, 24), strict=True):
        # Order, flips and canvases are those of training at one scale.
        np.testing.assert_array_equal(batch.indices, plain.indices)
        assert batch.images.shape == plain.images.shape
        np.testing.assert_allclose(
            batch.scale_factors, batch.image_sizes[:, ::-1] / original_sizes_wh(dataset, batch)
        )
        ratios = np.tile(batch.image_sizes[:, ::-1] / plain.image_sizes[:, ::-1], 2)[:, None]
        np.testing.assert_allclose(batch.boxes_xyxy, plain.boxes_xyxy * ratios, atol=1e-4)
        for image, (height, width) in zip(batch.images, batch.image_sizes, strict=True):
            assert not image[height:].any()
            assert not image[:, width:].any()
            assert image[:height, :width].any(axis=2).mean() > 0.9
        shown |= set(batch.image_sizes.min(axis=1).tolist())
    assert shown == set(sides)
    for batch, other in zip(take(dataset, 4, 0, 20, config), batches[20:], strict=True):
        assert_equal(batch, other)


def original_sizes_wh(dataset, batch):
    pictures = [dataset.pictures[index] for index in batch.indices]
    return np.array([(picture.width, picture.height) for picture in pictures])


def test_evaluation_has_one_scale(dataset):
    config = replace(CONFIG, short_sides=(32,))
    for batch, plain in zip(
        pipeline.eval_batches(dataset, config), pipeline.eval_batches(dataset, CONFIG), strict=True
    ):
        assert_equal(batch, plain)
