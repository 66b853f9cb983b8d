"""Several datasets as one: classes, pixels, repeats, and the order of a run."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from rpn_jax.config import DataConfig, replace
from rpn_jax.data.catalog import open_train_data
from rpn_jax.data.combined import repeat_factors
from rpn_jax.data.pipeline import train_batches
from rpn_jax.data.plan import plan_epoch, plan_training
from rpn_jax.errors import UserError
from tests.data import test_voc
from tests.data.coco_folder import annotation_file, box_entry, image_entry, write_coco_folder
from tests.evaluation.cases import picture_of


def write_coco(root, categories, pictures):
    """Write pictures of 40x60 pixels with one box each. Their sizes in x tell them apart."""
    boxes = [
        box_entry(k, k, [4, 4, 10 + k, 9], category_id=1 + k % len(categories))
        for k in range(1, pictures + 1)
    ]
    write_coco_folder(root, [image_entry(k) for k in range(1, pictures + 1)], boxes)
    coco = json.loads(annotation_file(root).read_text())
    coco["categories"] = [{"id": k, "name": name} for k, name in enumerate(categories, start=1)]
    annotation_file(root).write_text(json.dumps(coco))


@pytest.fixture
def config(tmp_path):
    """Three datasets: 4 pictures of a and b, 2 of c and a, and 1 of VOC's classes b and z."""
    write_coco(tmp_path / "one", ["a", "b"], 4)
    write_coco(tmp_path / "two", ["c", "a"], 2)
    voc = tmp_path / "voc"
    objects = [test_voc.xml_object(name, (9, 9, 30, 30)) for name in ("z", "b")]
    test_voc.write_xml(voc / "train" / "k.xml", objects)
    test_voc.write_picture(voc / "train" / "k.jpg", 5)
    two = tmp_path / "two"
    return DataConfig(
        root=str(tmp_path / "one"),
        train_split="train",
        train_also=(
            f"coco:{annotation_file(two)}:{two / 'train'}",
            f"voc:{voc}:train",
        ),
        scale=(64, 64),
        batch_size=2,
        loader_threads=1,
    )


def test_classes_with_the_same_name_become_one(config):
    dataset = open_train_data(config)
    assert dataset.class_names == ("a", "b", "c", "z")
    assert dataset.category_ids == (1, 2, 3, 4)
    assert [picture.image_id for picture in dataset.pictures] == [1, 2, 3, 4, 5, 6, 7]
    found = [
        [dataset.class_names[label] for label in picture.objects.labels]
        for picture in dataset.pictures
    ]
    assert found == [["b"], ["a"], ["b"], ["a"], ["a"], ["c"], ["z", "b"]]


def test_every_picture_has_the_pixels_of_its_own_dataset(config):
    dataset = open_train_data(config)
    parts = [
        open_train_data(replace(config, train_also=())),
        open_train_data(replace(config, root=config.root.replace("one", "two"), train_also=())),
    ]
    for part, start in zip(parts, (0, 4), strict=True):
        for index in range(len(part.pictures)):
            pixels = dataset.load_image(start + index)
            np.testing.assert_array_equal(pixels, part.load_image(index))
    assert dataset.load_image(6).shape[:2] == (
        dataset.pictures[6].height,
        dataset.pictures[6].width,
    )
    assert dataset.pictures[0].name == f"{config.root}: 001.png"


def test_classes_can_be_chosen_and_renamed_over_all_datasets(config):
    dataset = open_train_data(replace(config, class_map=("z=c",), train_classes=("c",)))
    assert dataset.class_names == ("a", "b", "c")
    counts = [len(picture.objects.labels) for picture in dataset.pictures]
    assert counts == [0, 0, 0, 0, 0, 1, 1]


def counts_of(epoch, pictures=7):
    return np.bincount(epoch.indices.ravel(), minlength=pictures)


def test_repeats_show_a_dataset_as_often_as_they_say(config):
    data = replace(config, train_repeats=(0.5, 3.0, 1.25), batch_size=1)
    plan = plan_training(open_train_data(data), data)
    assert plan.repeats is not None
    assert plan.repeats.tolist() == [0.5] * 4 + [3, 3, 1.25]
    epochs = [
        counts_of(plan_epoch(plan.groups, data, 1, number, plan.repeats)) for number in range(400)
    ]
    assert {int(counts.sum()) for counts in epochs} == {plan.epoch_steps}
    for counts in epochs:
        assert (counts >= np.floor(plan.repeats)).all()
    # 9.25 pictures of the landscape group are rounded up to 10 in every epoch.
    group = plan.groups[0]
    scaled = plan.repeats.copy()
    for group in plan.groups:
        scaled[group] *= np.ceil(plan.repeats[group].sum()) / plan.repeats[group].sum()
    np.testing.assert_allclose(np.mean(epochs, axis=0), scaled, atol=0.08)


def test_an_epoch_without_pictures_is_refused(config):
    data = replace(config, train_repeats=(1e-9, 1e-9, 1e-9))
    with pytest.raises(UserError, match=r"^data.train_repeats = \(1e-09, .* none of 7 pictures"):
        plan_training(open_train_data(data), data)
    data = replace(config, train_repeats=(1.0, 1e-9, 1e-9), batch_size=1)
    plan = plan_training(open_train_data(data), data)
    epoch = plan_epoch(plan.groups, data, 1, 0, plan.repeats)
    assert counts_of(epoch).tolist() == [1] * 4 + [0] * 3


def test_without_repeats_every_picture_is_shown_once(config):
    plan = plan_training(open_train_data(config), replace(config, batch_size=1))
    assert plan.repeats is None
    assert counts_of(plan_epoch(plan.groups, plan.config, 1, 0)).tolist() == [1] * 7


def test_a_run_with_repeats_resumes_with_the_same_batches(config):
    data = replace(config, train_repeats=(0.5, 2.5, 1.0), repeat_threshold=0.9)
    dataset = open_train_data(data)
    plan = plan_training(dataset, data)
    steps = 2 * plan.epoch_steps + 1
    whole = list(itertools.islice(train_batches(dataset, plan, 3, 0), steps))
    again = list(itertools.islice(train_batches(dataset, plan, 3, 2), steps - 2))
    for one, two in zip(whole[2:], again, strict=True):
        np.testing.assert_array_equal(one.indices, two.indices)
        np.testing.assert_array_equal(one.images, two.images)
        np.testing.assert_array_equal(one.labels, two.labels)


def repeat_factors_by_loops(pictures, threshold):
    """Follow Gupta et al. 2019 picture by picture."""
    classes = [{a for a, kept in picture if kept} for picture in pictures]
    factors = []
    for own in classes:
        best = 1.0
        for name in own:
            share = sum(name in other for other in classes) / len(classes)
            best = max(best, (threshold / share) ** 0.5)
        factors.append(best)
    return factors


@pytest.mark.parametrize("seed", range(4))
def test_repeat_factors_are_those_of_lvis(seed):
    rng = np.random.default_rng(seed)
    described, pictures = [], []
    for number in range(30):
        labels = rng.integers(0, 12, rng.integers(0, 5)) ** 2 // 12
        crowds = rng.random(len(labels)) < 0.2
        described.append([(int(a), not crowd) for a, crowd in zip(labels, crowds, strict=True)])
        annotations = [
            {"id": k, "bbox": [5, 5, 20, 20], "area": 400, "category_id": a, "iscrowd": crowd}
            for k, (a, crowd) in enumerate(zip(labels, crowds, strict=True))
        ]
        pictures.append(picture_of(number, annotations))
    for threshold in (0.01, 0.2, 1.0):
        expected = repeat_factors_by_loops(described, threshold)
        np.testing.assert_allclose(repeat_factors(pictures, 12, threshold), expected)
