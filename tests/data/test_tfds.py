"""Reading TensorFlow Datasets, through a stand-in of the package with records of its form."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from rpn_jax.config import DataConfig
from rpn_jax.data.catalog import open_dataset
from rpn_jax.data.dataset import training_boxes
from rpn_jax.errors import UserError
from tests.data.coco_folder import picture

SKIP = object()


def record(index: int, boxes: list[list[float]], crowd: list[bool]) -> dict:
    encoded = cv2.imencode(".png", cv2.cvtColor(picture(index, 40, 80), cv2.COLOR_RGB2BGR))[1]
    return {
        "image": encoded.tobytes(),
        "image/filename": f"{index:012d}.png".encode(),
        "image/id": 100 + index,
        "objects": {
            "id": [np.int64(10 * index + k) for k in range(len(boxes))],
            "label": [np.int64(k) for k in range(len(boxes))],
            "area": [np.int64(200) for _ in boxes],
            "bbox": [np.float32(box) for box in boxes],
            "is_crowd": [np.bool_(value) for value in crowd],
        },
    }


class FakeBuilder:
    def __init__(self, folder, random_access: bool) -> None:
        label = SimpleNamespace(names=["person", "bicycle"])
        self.info = SimpleNamespace(
            splits={"train": 2, "validation": 1}, features={"objects": {"label": label}}
        )
        self.folder = folder
        self._random_access = random_access

    def as_data_source(self, split, decoders):
        if not self._random_access:
            raise NotImplementedError
        assert decoders == {"image": SKIP}
        records = [
            record(1, [[0.25, 0.1, 0.75, 0.6], [0, 0, 1, 1]], [False, True]),
            record(2, [], []),
        ]
        return records if split == "train" else records[:1]


@pytest.fixture
def root(tmp_path):
    for version in ("1.0.0", "1.1.0"):
        (tmp_path / "coco" / "2017" / version).mkdir(parents=True)
        (tmp_path / "coco" / "2017" / version / "dataset_info.json").write_text("{}")
    return tmp_path


def install(monkeypatch, random_access: bool = True) -> list:
    opened = []

    def builder_from_directory(folder):
        opened.append(folder)
        return FakeBuilder(folder, random_access)

    package = SimpleNamespace(
        builder_from_directory=builder_from_directory,
        decode=SimpleNamespace(SkipDecoding=lambda: SKIP),
    )
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", package)
    return opened


def refusal(root, split="train") -> str:
    with pytest.raises(UserError) as caught:
        open_dataset(DataConfig(dataset="tfds", root=str(root)), split)
    return str(caught.value)


@pytest.mark.parametrize(("split", "count"), [("train2017", 2), ("train", 2), ("val2017", 1)])
def test_records_become_pictures_in_pixels(monkeypatch, root, split, count):
    opened = install(monkeypatch)
    dataset = open_dataset(DataConfig(dataset="tfds", root=str(root)), split)
    assert opened == [root / "coco" / "2017" / "1.1.0"]
    assert [p.image_id for p in dataset.pictures] == [101, 102][:count]
    assert (dataset.pictures[0].height, dataset.pictures[0].width) == (40, 80)
    # (ymin, xmin, ymax, xmax) shares of 40 x 80 pixels; the crowd is left out.
    np.testing.assert_allclose(training_boxes(dataset.pictures[0])[0], [[8, 10, 48, 30]], rtol=1e-6)
    np.testing.assert_array_equal(dataset.load_image(0), picture(1, 40, 80))
    objects = dataset.pictures[0].objects
    np.testing.assert_allclose(objects.boxes_xywh, [[8, 10, 40, 20], [0, 0, 80, 40]], rtol=1e-6)
    assert objects.is_crowd.tolist() == [False, True]
    assert objects.labels.tolist() == [0, 1]
    assert objects.ids.tolist() == [10, 11]
    assert dataset.class_names == ("person", "bicycle")
    assert dataset.category_ids == (1, 2)


def test_missing_package_names_the_extra(monkeypatch, root):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert "pip install 'rpn-jax[tfds]'" in refusal(root)


def test_what_is_missing_is_named(monkeypatch, root, tmp_path):
    install(monkeypatch)
    assert refusal(tmp_path / "none") == (
        f"data.root = '{tmp_path / 'none'}': has no coco/2017/VERSION/dataset_info.json"
    )
    assert refusal(root, "test") == (
        f"split 'test': {root / 'coco' / '2017' / '1.1.0'} has the splits train, validation"
    )
    install(monkeypatch, random_access=False)
    assert refusal(root).endswith("Prepare coco/2017 with file_format='array_record'")
