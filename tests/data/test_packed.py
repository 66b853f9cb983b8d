"""Packed datasets give the batches and the ground truth of the plain ones."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from rpn_jax import cli
from rpn_jax.config import DataConfig, save_config
from rpn_jax.data.catalog import open_eval_data, open_train_data
from rpn_jax.data.dataset import class_frequencies
from rpn_jax.data.packed import open_packed, pack_split, split_names
from rpn_jax.data.pipeline import eval_batches, train_batches
from rpn_jax.data.plan import plan_training
from rpn_jax.errors import UserError
from tests.data.coco_folder import annotation_file, box_entry, image_entry, write_coco_folder

PICTURES = 9
DATA = DataConfig(
    train_split="train",
    eval_split="train",
    scale=(64, 48),
    batch_size=4,
    eval_batch_size=4,
    loader_threads=2,
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A config for a COCO folder: most pictures are larger than the scale, one is smaller."""
    images = [image_entry(k, *((90, 120), (120, 90), (30, 40))[k % 3]) for k in range(1, 10)]
    boxes = [
        box_entry(2, 1, [3.25, 4, 20, 30.5], area=77.5),
        box_entry(9, 1, [0, 0, 100, 80], iscrowd=1, ignore=1),
        *(box_entry(10 + k, k, [1, 2, 20, 25]) for k in range(2, 10)),
    ]
    root = write_coco_folder(tmp_path_factory.mktemp("plain"), images, boxes)
    return replace(DATA, root=str(root))


def packed_config(plain, tmp_path, encoding):
    counts: list[int] = []
    written = pack_split(open_train_data(plain), plain, tmp_path, "train", encoding, counts.append)
    assert written == sum(counts) == PICTURES
    return replace(plain, dataset="packed", root=str(tmp_path))


def assert_same_batches(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("resize", ["host", "device"])
def test_batches_are_those_of_the_plain_dataset(plain, tmp_path, resize):
    """Order, flips, boxes, sizes and pixels, also after a resume at step 3."""
    packed = packed_config(plain, tmp_path, "png")
    datasets = open_train_data(plain), open_train_data(packed)
    for first_step in (0, 3):
        batches = (
            itertools.islice(
                train_batches(dataset, plan_training(dataset, plain), 7, first_step), 5
            )
            for dataset in datasets
        )
        assert_same_batches(*batches)
    assert_same_batches(*(eval_batches(dataset, plain) for dataset in datasets))
    if resize == "device":
        config = replace(packed, resize="device")
        for batch in eval_batches(datasets[1], config):
            sizes = np.asarray(batch.pending_resize.sizes)
            assert sizes.max() <= 64, "the device resizes the packed pixels"


def test_ground_truth_stays_that_of_the_original_pictures(plain, tmp_path):
    packed = open_eval_data(packed_config(plain, tmp_path, "jpeg"))
    original = open_eval_data(plain)
    assert packed.class_names == original.class_names
    assert packed.category_ids == original.category_ids
    for one, other in zip(packed.pictures, original.pictures, strict=True):
        assert (one.image_id, one.name, one.height, one.width) == (
            other.image_id,
            other.name,
            other.height,
            other.width,
        )
        for field in ("boxes_xywh", "labels", "is_crowd", "is_difficult", "areas", "ids"):
            np.testing.assert_array_equal(
                getattr(one.objects, field), getattr(other.objects, field)
            )
    shapes = [packed.load_image(index).shape[:2] for index in range(3)]
    assert shapes == [(64, 48), (30, 40), (48, 64)], "resized to 64x48, or smaller as it was"
    for index in range(PICTURES):
        pixels = original.load_image(index)
        height, width = packed.load_image(index).shape[:2]
        expected = cv2.resize(pixels, (width, height)).astype(int)
        assert np.abs(packed.load_image(index) - expected).mean() < 4


def test_several_files_are_one_split(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("rpn_jax.data.packed.PICTURES_PER_FILE", 4)
    config = packed_config(plain, tmp_path, "png")
    assert len(list(tmp_path.glob("train-*.array_record"))) == 3
    assert_same_batches(*(eval_batches(open_eval_data(each), plain) for each in (config, plain)))


def test_the_command_packs_both_parts_and_prints_how_to_use_them(
    plain, tiny_config, tmp_path, capsys
):
    save_config(replace(tiny_config, data=plain), tmp_path / "c.json")
    words = ["pack", str(tmp_path / "c.json"), "--out", str(tmp_path / "p")]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert f"9 pictures of 'train' are in {tmp_path / 'p'}" in said
    flags = f"--data.dataset packed --data.root {tmp_path / 'p'} --data.train-split train "
    assert flags + "--data.eval-split train" in said
    check = ["check-data", str(tmp_path / "c.json"), *flags.split(), "--data.min-image-size", "16"]
    assert cli.main(check) == 0
    assert "no problems found" in capsys.readouterr().out
    assert cli.main(words) == 2
    assert "train.json: exists. Remove this split" in capsys.readouterr().err


def test_a_packed_folder_refuses_larger_pictures_and_damage(plain, tmp_path):
    packed = packed_config(plain, tmp_path, "png")
    with pytest.raises(UserError, match=r"packed for --data.scale 64 48, .* smaller than 96 64"):
        open_train_data(replace(packed, scale=(96, 64)))
    open_train_data(replace(packed, scale=(48, 32)))
    with pytest.raises(UserError, match="split 'val': there is no .*Splits there: train"):
        open_packed(tmp_path, "val")
    for path in tmp_path.glob("*.array_record"):
        path.unlink()
    with pytest.raises(UserError, match="array_record: cannot be read"):
        open_packed(tmp_path, "train")


@pytest.mark.parametrize(("start", "kept"), [(0, 0.0), (0, 0.5), (65_600, 1.0)], ids=str)
def test_damaged_records_are_an_error_of_one_line(plain, tmp_path, start, kept):
    packed = packed_config(plain, tmp_path, "png")
    (path,) = tmp_path.glob("*.array_record")
    data = bytearray(path.read_bytes()[: int(kept * path.stat().st_size)])
    data[start : start + 50] = bytes(255 - value for value in data[start : start + 50])
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"cannot be read \(.+\)\. Pack the dataset again\.$"):
        open_train_data(packed)


def test_a_damaged_record_is_an_error_when_it_is_loaded(plain, tmp_path):
    packed = packed_config(plain, tmp_path, "png")
    (path,) = tmp_path.glob("*.array_record")
    data = bytearray(path.read_bytes())
    data[1000:1050] = bytes(255 - value for value in data[1000:1050])
    path.write_bytes(data)
    dataset = open_train_data(packed)
    with pytest.raises(UserError, match=r"the record of 001\.png cannot be read \(.+\)\. Pack"):
        dataset.load_image(0)


def test_a_broken_picture_leaves_nothing_or_is_left_out(plain, tmp_path):
    dataset = open_train_data(plain)
    load = dataset.load_image

    class Broken:
        pictures, class_names = dataset.pictures, dataset.class_names
        category_ids = dataset.category_ids

        def load_image(self, index):
            if index == 5:
                raise UserError("a.jpg: is broken")
            return load(index)

    with pytest.raises(UserError, match="is broken"):
        pack_split(Broken(), plain, tmp_path, "train", "png", lambda _: None)
    assert list(tmp_path.iterdir()) == []
    skip = replace(plain, on_bad_picture="skip")
    assert pack_split(Broken(), skip, tmp_path, "train", "png", lambda _: None) == PICTURES - 1
    ids = [picture.image_id for picture in open_packed(tmp_path, "train").pictures]
    assert ids == [1, 2, 3, 4, 5, 7, 8, 9]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"train_split": "train[:10%]", "eval_split": "test"}, ("train_10", "test")),
        ({"train_split": "data/any/some.json", "eval_split": "test"}, ("some", "test")),
        ({"train_split": "t[:10%]", "eval_split": "t[10%:]"}, ("train_t_10", "eval_t_10")),
        (
            {"train_split": "train/_a.coco.json", "eval_split": "valid/_a.coco.json"},
            ("train_a.coco", "eval_a.coco"),
        ),
        ({"train_split": "all", "eval_split": "all"}, ("all", "all")),
        (
            {"train_split": "all", "eval_split": "all", "eval_classes": ("x",)},
            ("train_all", "eval_all"),
        ),
    ],
)
def test_split_names_are_file_names_and_differ_for_other_data(changes, names):
    assert split_names(replace(DATA, **changes)) == names


def test_both_parts_are_opened_before_one_is_written(plain, tiny_config, tmp_path, capsys):
    save_config(replace(tiny_config, data=plain), tmp_path / "c.json")
    words = ["pack", str(tmp_path / "c.json"), "--out", str(tmp_path / "p")]
    assert cli.main([*words, "--data.eval-split", "missing"]) == 2
    assert list((tmp_path / "p").iterdir()) == []
    (tmp_path / "p" / "new.json").touch()
    assert cli.main([*words, "--data.eval-split", "new"]) == 2
    assert "new.json: exists. Remove this split" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["new.json"]


def test_a_full_disk_is_one_line(plain, tmp_path, monkeypatch):
    class Full:
        def __init__(self, path, options):
            Path(path).touch()

        def write(self, record):
            pass

        def close(self):
            raise RuntimeError("write() failed: No space left on device; writing x; at byte 9")

    monkeypatch.setattr("rpn_jax.data.packed.ArrayRecordWriter", Full)
    message = r"train-00000.array_record: cannot be written \(No space left on device\)$"
    with pytest.raises(UserError, match=message):
        packed_config(plain, tmp_path, "png")
    assert list(tmp_path.iterdir()) == []


def test_several_federated_datasets_keep_their_lists_and_frequencies(tmp_path):
    root = write_coco_folder(tmp_path / "a", [image_entry(1)], [box_entry(1, 1, [9, 9, 9, 9])])
    file = annotation_file(root)
    coco = json.loads(file.read_text())
    coco["images"][0] |= {"neg_category_ids": [7], "not_exhaustive_category_ids": [1]}
    coco["categories"] = [
        {"id": 1, "name": "x", "frequency": "r"},
        {"id": 7, "name": "y", "frequency": "f"},
    ]
    file.write_text(json.dumps(coco))
    config = replace(DATA, root=str(root), train_also=(f"coco:{file}:{root / 'train'}",))
    (tmp_path / "out").mkdir()
    pack_split(open_train_data(config), config, tmp_path / "out", "train", "png", lambda _: None)
    packed = open_packed(tmp_path / "out", "train")
    assert class_frequencies(packed) == {"x": "r", "y": "f"}
    assert [picture.image_id for picture in packed.pictures] == [1, 2]
    for picture in packed.pictures:
        assert picture.objects.labels.tolist() == [0]
        assert picture.verified is not None
        assert picture.verified.absent.tolist() == [1]
        assert picture.verified.not_exhaustive.tolist() == [0]
