"""A JPEG with damaged pixels gives one warning in a training run."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from rpn_jax.config import DataConfig
from rpn_jax.data.catalog import open_train_data
from rpn_jax.data.images import jpeg_damage
from rpn_jax.data.pipeline import train_batches
from rpn_jax.data.plan import plan_training
from tests.data.coco_folder import box_entry, image_entry, picture, write_coco_folder


def jpeg() -> bytearray:
    rng = np.random.default_rng(0)
    pixels = picture(3, 240, 320) // 2 + rng.integers(0, 99, (240, 320, 3), dtype=np.uint8)
    return bytearray(cv2.imencode(".jpg", pixels)[1].tobytes())


def test_every_kind_of_damage_is_found():
    middle = len(jpeg()) // 2
    rng = np.random.default_rng(1)
    for bytes_ in (bytes(400), rng.bytes(400), b"\xff\xc0" * 200):
        data = jpeg()
        data[middle : middle + 400] = bytes_
        assert jpeg_damage(bytes(data)), bytes_[:4]
    assert jpeg_damage(bytes(jpeg()[:middle])).startswith("Premature")
    assert jpeg_damage(bytes(jpeg())) == ""


@pytest.mark.parametrize("damaged", [(), ("002.jpg", "003.jpg")])
def test_training_names_the_first_damaged_picture_once(tmp_path, capsys, damaged):
    images = [{**image_entry(k, 240, 320), "file_name": f"{k:03d}.jpg"} for k in range(1, 4)]
    boxes = [box_entry(k, k, [9, 9, 50, 50]) for k in range(1, 4)]
    root = write_coco_folder(tmp_path, images, boxes)
    for name in damaged:
        data = jpeg()
        middle = len(data) // 2
        data[middle : middle + 400] = bytes(400)
        (root / "train" / name).write_bytes(data)
    config = DataConfig(
        root=str(root), train_split="train", scale=(64, 64), batch_size=1, loader_threads=2
    )
    dataset = open_train_data(config)
    plan = plan_training(dataset, config)
    batches = itertools.islice(train_batches(dataset, plan, 0, 0), 4 * plan.epoch_steps)
    assert len(list(batches)) == 12
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == bool(damaged)
    for line in warnings:
        assert line.startswith(("warning: 002.jpg: its pixels", "warning: 003.jpg: its pixels"))
        assert "Corrupt JPEG data" in line
