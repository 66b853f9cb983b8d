"""Reading TensorFlow Datasets: small datasets are prepared with the package, without TensorFlow."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from rpn_jax.config import DataConfig
from rpn_jax.data.catalog import open_dataset
from rpn_jax.data.dataset import training_boxes
from rpn_jax.errors import UserError
from tests.data.coco_folder import picture

tfds = pytest.importorskip("tensorflow_datasets")

features = tfds.features
FLAG, WHOLE = np.bool_, np.int64
CLASSES = features.ClassLabel(names=["person", "bicycle"])
OTHERS = features.ClassLabel(names=["left", "right", "front"])
BOXES = [(0.25, 0.1, 0.75, 0.6), (0.0, 0.0, 1.0, 1.0)]
"""(ymin, xmin, ymax, xmax), shares of pictures of 40x80 (height x width)."""
PIXELS_XYWH = [[8, 10, 40, 20], [0, 0, 80, 40]]


def encoded(index: int) -> io.BytesIO:
    rgb = picture(index, 40, 80)
    return io.BytesIO(cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes())


def prepare(root, name, top, sequence, inside, examples, version="1.0.0"):
    """Prepare a dataset.

    Args:
      root: data_dir.
      name: name of the dataset, with its config after a slash.
      top: features next to the image.
      sequence: name of the sequence of objects.
      inside: features of an object.
      examples: for each split, a list of (values of ``top``, values of each object).
    """
    name, _, config = name.partition("/")

    base: Any = tfds.core.GeneratorBasedBuilder

    class Builder(base, skip_registration=True):
        VERSION = tfds.core.Version(version)
        code_path = None  # the package would need importlib_resources to find this file
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            image = features.Image(encoding_format="png")
            kinds = {"image": image, **top, sequence: features.Sequence(inside)}
            return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(kinds))

        def _split_generators(self, manager):
            return {split: self._generate_examples(split) for split in examples}

        def _generate_examples(self, split):
            for index, (values, objects) in enumerate(examples[split], start=1):
                yield index, {"image": encoded(index), **values, sequence: objects}

    Builder.name = name
    Builder(data_dir=str(root), file_format="array_record").download_and_prepare()
    assert "tensorflow" not in sys.modules
    return root


def box(index, **more):
    return {"bbox": features.BBox(*BOXES[index]), **more}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    top = {"image/filename": features.Text(), "image/id": WHOLE}
    inside = {"bbox": features.BBoxFeature(), "label": CLASSES, "is_crowd": FLAG}
    inside |= {"area": WHOLE, "id": WHOLE}
    objects = [
        box(0, label=0, is_crowd=False, area=200, id=10),
        box(1, label=1, is_crowd=True, area=900, id=11),
    ]
    first = ({"image/filename": "a.png", "image/id": 101}, objects)
    second: tuple[dict, list] = ({"image/filename": "b.png", "image/id": 102}, [])
    root = tmp_path_factory.mktemp("tfds")
    for version in ("9.0.0", "10.0.0"):
        train = [first, second] if version == "10.0.0" else [second]
        examples = {"train": train, "validation": [first]}
        prepare(root, "coco/2017", top, "objects", inside, examples, version)
    return root


def open_tfds(root, split="train", name="coco/2017"):
    return open_dataset(DataConfig(dataset="tfds", root=str(root), tfds_name=name), split)


def refusal(root, split="train", name="coco/2017") -> str:
    with pytest.raises(UserError) as caught:
        open_tfds(root, split, name)
    return str(caught.value)


@pytest.mark.parametrize(("split", "ids"), [("train2017", {101, 102}), ("validation", {101})])
def test_records_become_pictures_in_pixels(coco, split, ids):
    dataset = open_tfds(coco, split)
    by_id = {each.image_id: each for each in dataset.pictures}  # prepared datasets are shuffled
    assert by_id.keys() == ids
    first = by_id[101]
    assert (first.name, first.height, first.width) == ("a.png", 40, 80)
    np.testing.assert_allclose(first.objects.boxes_xywh, PIXELS_XYWH, rtol=1e-6)
    # The crowd is left out of training.
    np.testing.assert_allclose(training_boxes(first)[0], [[8, 10, 48, 30]], rtol=1e-6)
    assert first.objects.is_crowd.tolist() == [False, True]
    assert first.objects.labels.tolist() == [0, 1]
    assert first.objects.areas.tolist() == [200, 900]
    assert first.objects.ids.tolist() == [10, 11]
    assert dataset.class_names == ("person", "bicycle")
    assert dataset.category_ids == (1, 2)
    index = [each.image_id for each in dataset.pictures].index(101)
    np.testing.assert_array_equal(dataset.load_image(index), picture(1, 40, 80))


def test_a_part_of_a_split_has_the_pictures_of_its_range(coco):
    whole = open_tfds(coco)
    first, second = open_tfds(coco, "train[:50%]"), open_tfds(coco, "train2017[1:]")
    ids = [each.image_id for each in (*first.pictures, *second.pictures)]
    assert ids == [each.image_id for each in whole.pictures]
    np.testing.assert_array_equal(second.load_image(0), whole.load_image(1))
    assert refusal(coco, "train[1:1]").endswith("10.0.0: has no pictures")


def test_opening_decodes_no_pixels(coco, monkeypatch):
    def fail(*arguments):
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", fail)
    assert len(open_tfds(coco).pictures) == 2


VOC = {"label": CLASSES, "is_difficult": FLAG, "is_truncated": FLAG, "pose": OTHERS}
KITTI = {"type": CLASSES, "occluded": OTHERS, "dimensions": features.Tensor(shape=(3,), dtype=FLAG)}
OPEN_IMAGES = {"label": CLASSES, "is_group_of": np.int8, "source": OTHERS}
LVIS = {"label": CLASSES, "segmentation": features.Image(encoding_format="png")}


@pytest.mark.parametrize(
    ("name", "sequence", "inside", "values", "labels", "difficult", "crowd"),
    [
        ("voc/2007", "objects", VOC, (1, True, False, 2), [1], [True], [False]),
        ("kitti", "objects", KITTI, (1, 2, [True] * 3), [1], [False], [False]),
        ("open_images_v4/300k", "bobjects", OPEN_IMAGES, (0, 1, 2), [0], [False], [True]),
        ("lvis", "objects", LVIS, (1, io.BytesIO(b"mask")), [1], [False], [False]),
        ("wider_face", "faces", {"invalid": FLAG}, (True,), [0], [True], [False]),
    ],
)
def test_features_are_found_by_type(
    tmp_path, name, sequence, inside, values, labels, difficult, crowd
):
    objects = [box(0, **dict(zip(inside, values, strict=True)))]
    inside = {"bbox": features.BBoxFeature(), **inside}
    top = {"labels": features.Sequence(CLASSES)}
    prepare(tmp_path, name, top, sequence, inside, {"train": [({"labels": []}, objects)]})
    dataset = open_tfds(tmp_path, name=name)
    (only,) = dataset.pictures
    assert (only.image_id, only.name) == (1, f"{name} train 0")
    np.testing.assert_allclose(only.objects.boxes_xywh, PIXELS_XYWH[:1], rtol=1e-6)
    assert only.objects.areas.tolist() == pytest.approx([800])
    assert only.objects.labels.tolist() == labels
    assert only.objects.is_difficult.tolist() == difficult
    assert only.objects.is_crowd.tolist() == crowd
    expected = ("object",) if name == "wider_face" else ("person", "bicycle")
    assert dataset.class_names == expected
    assert dataset.load_image(0).shape == (40, 80, 3)


def test_missing_package_names_the_extra(monkeypatch, coco):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert "pip install 'rpn-jax[tfds]'" in refusal(coco)


def test_what_is_missing_is_named(coco, tmp_path):
    assert refusal(coco, name="voc/2007") == (
        f"data.root = '{coco}': has no voc/2007/VERSION/dataset_info.json. Prepared datasets "
        "there: coco/2017. Choose one with --data.tfds-name"
    )
    for split in ("test", "test[:1]", "train[:80", "train[:200%]"):
        assert refusal(coco, split) == (
            f"split '{split}': {coco / 'coco' / '2017' / '10.0.0'} has the splits train, "
            "validation. A part of one is written like 'train[:80%]'"
        )
    boxes = {"bbox": features.BBoxFeature()}
    prepare(
        tmp_path,
        "two",
        {"more": features.Image()},
        "objects",
        boxes,
        {"train": [({"more": encoded(1)}, [])]},
    )
    assert "two: has 2 images and 1 sequences with boxes" in refusal(tmp_path, name="two")
    unclear = {**boxes, "a": CLASSES, "b": OTHERS}
    prepare(tmp_path, "labels", {}, "objects", unclear, {"train": [({}, [])]})
    assert "features a, b: which of them is the class" in refusal(tmp_path, name="labels")


def test_a_format_without_positions_is_refused(tmp_path):
    example: tuple[dict, list] = ({}, [box(0)])
    inside = {"bbox": features.BBoxFeature()}
    prepare(tmp_path, "a", {}, "objects", inside, {"train": [example]})
    info = tmp_path / "a" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    assert "Prepare the dataset with file_format='array_record'" in refusal(tmp_path, name="a")


def test_ids_that_are_texts_are_not_used(tmp_path):
    top = {"image/id": features.Text()}
    inside = {"bbox": features.BBoxFeature(), "label": CLASSES, "id": features.Text()}
    example = ({"image/id": "a7"}, [box(0, label=1, id="b8")])
    prepare(tmp_path, "a", top, "objects", inside, {"train": [example]})
    (only,) = open_tfds(tmp_path, name="a").pictures
    assert only.image_id == 1
    assert only.objects.ids.tolist() == [0]


def test_two_pictures_with_the_same_id_are_refused(tmp_path):
    inside = {"bbox": features.BBoxFeature()}
    example: tuple[dict, list] = ({"image/id": 5}, [box(0)])
    prepare(tmp_path, "a", {"image/id": WHOLE}, "objects", inside, {"train": [example] * 2})
    assert refusal(tmp_path, name="a") == (
        f"{tmp_path / 'a' / '1.0.0'}: two pictures have image/id 5. Ids must differ"
    )


def test_an_object_without_a_label_is_refused(tmp_path):
    inside = {"bbox": features.BBoxFeature(), "label": CLASSES}
    example: tuple[dict, list] = ({}, [box(0, label=1), box(1, label=-1)])
    prepare(tmp_path, "a", {}, "objects", inside, {"train": [example]})
    assert refusal(tmp_path, name="a") == (
        "a train 0: an object has label -1. Labels must be 0 to 1. TensorFlow Datasets writes -1 "
        "where an object has no label"
    )


def test_labels_without_names_are_refused(tmp_path):
    inside = {"bbox": features.BBoxFeature(), "label": features.Text()}
    prepare(tmp_path, "a", {}, "objects", inside, {"train": [({}, [box(0, label="cell")])]})
    assert refusal(tmp_path, name="a") == (
        "a: feature 'label' of the objects is of type Text. It must be a ClassLabel, which lists "
        "the names of the classes"
    )


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("files", "damage"),
    [
        ("*.array_record*", cut_in_half),
        ("*.array_record*", Path.unlink),
        ("dataset_info.json", cut_in_half),
        ("features.json", cut_in_half),
        ("features.json", Path.unlink),
    ],
)
def test_a_damaged_dataset_is_named(tmp_path, files, damage):
    inside = {"bbox": features.BBoxFeature()}
    prepare(tmp_path, "a", {}, "objects", inside, {"train": [({}, [box(0)])]})
    folder = tmp_path / "a" / "1.0.0"
    for path in folder.glob(files):
        damage(path)
    message = refusal(tmp_path, name="a")
    assert message.startswith(f"{folder}: cannot be read (")
    assert message.endswith("). Prepare the dataset again")


def test_folders_of_incomplete_versions_are_not_read(tmp_path):
    inside = {"bbox": features.BBoxFeature()}
    prepare(tmp_path, "a", {}, "objects", inside, {"train": [({}, [box(0)])]})
    unfinished = tmp_path / "a" / "1.0.1.incompleteABC"
    unfinished.mkdir()
    (unfinished / "dataset_info.json").write_text("{}")
    assert len(open_tfds(tmp_path, name="a").pictures) == 1
