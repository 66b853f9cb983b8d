"""Datasets with the objects of some classes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rpn_jax.config import DataConfig, replace
from rpn_jax.data.catalog import open_eval_data, open_train_data
from rpn_jax.data.classes import seen_and_unseen, with_listed_names
from rpn_jax.data.dataset import training_box_counts
from rpn_jax.errors import UserError
from tests.data.coco_folder import annotation_file, box_entry, image_entry, write_coco_folder


@pytest.fixture
def config(tmp_path):
    """Pictures with 3 and 1 boxes, of the classes a, b, c and a."""
    boxes = [box_entry(k, 1, [k, k, 9, 9], category_id=k) for k in (1, 2, 3)]
    boxes.append(box_entry(4, 2, [4, 4, 9, 9], category_id=1))
    root = write_coco_folder(tmp_path, [image_entry(1), image_entry(2)], boxes)
    coco = json.loads(annotation_file(root).read_text())
    coco["categories"] = [{"id": k, "name": name} for k, name in enumerate("abc", start=1)]
    annotation_file(root).write_text(json.dumps(coco))
    return DataConfig(root=str(root), train_split="train", eval_split="train")


def ids(dataset):
    return [picture.objects.ids.tolist() for picture in dataset.pictures]


def test_only_objects_of_the_classes_are_kept(config, tmp_path):
    (tmp_path / "names.txt").write_text("c\n\n b\n")
    data = replace(config, train_classes=("a",), eval_classes=(str(tmp_path / "names.txt"),))
    train, rest, whole = open_train_data(data), open_eval_data(data), open_train_data(config)
    assert (ids(train), ids(rest), ids(whole)) == ([[1], [4]], [[2, 3], []], [[1, 2, 3], [4]])
    for dataset in (train, rest):
        assert dataset.class_names == whole.class_names
        assert dataset.category_ids == whole.category_ids
        np.testing.assert_array_equal(dataset.load_image(1), whole.load_image(1))
    assert rest.pictures[0].objects.labels.tolist() == [1, 2]
    assert training_box_counts(rest.pictures).tolist() == [2, 0]


def test_a_saved_config_has_the_names_and_not_their_file(config, tmp_path):
    (tmp_path / "names.txt").write_text("c\nb\n")
    data = replace(config, train_classes=(str(tmp_path / "names.txt"),), eval_classes=("a",))
    assert with_listed_names(data) == replace(data, train_classes=("c", "b"))
    (tmp_path / "names.txt").write_text("\n")
    with pytest.raises(UserError, match=r"names\.txt: has no name of a class"):
        with_listed_names(data)


def test_an_unknown_class_is_named(config):
    with pytest.raises(UserError, match=r"^data\.eval_classes: the dataset has no class 'aa'; did"):
        open_eval_data(replace(config, eval_classes=("a", "aa")))


def labels(dataset):
    return [picture.objects.labels.tolist() for picture in dataset.pictures]


def test_the_classes_trained_on_and_the_others_share_all_objects(config, tmp_path):
    (tmp_path / "names.txt").write_text("c\nnot here\n")
    whole = open_eval_data(config)
    for classes in (("c", "not here"), (str(tmp_path / "names.txt"),)):
        groups = seen_and_unseen(whole, classes)
        assert ids(groups["seen"]) == [[3], []]
        assert ids(groups["unseen"]) == [[1, 2], [4]]
        assert groups["seen"].class_names == whole.class_names


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (None, ""),
        ("map.toml", "c = 'a'\n'b' = 'big dog'\n"),
        ("map.json", '{"c": "a", "b": "big dog"}'),
    ],
)
def test_renamed_classes_with_the_same_name_become_one(config, tmp_path, file, text):
    class_map: tuple[str, ...] = ("c=a", "b=big dog")
    if file:
        (tmp_path / file).write_text(text)
        class_map = (str(tmp_path / file),)
    data = replace(config, class_map=class_map, train_classes=("a",))
    renamed = open_eval_data(data)
    assert (renamed.class_names, renamed.category_ids) == (("a", "big dog"), (1, 2))
    assert labels(renamed) == [[0, 1, 0], [0]]
    assert ids(open_train_data(data)) == [[1, 3], [4]]


def test_a_map_with_an_unknown_class_or_of_another_form_is_an_error(config, tmp_path):
    with pytest.raises(UserError, match=r"^data\.class_map: there is no class 'aa'; did you"):
        open_train_data(replace(config, class_map=("aa=b",)))
    with pytest.raises(UserError, match=r"^data\.class_map: 'a' has two new names, 'b' and 'c'$"):
        open_train_data(replace(config, class_map=("a=b", "a=c")))
    texts = (
        ("m.toml", "a = 1"),
        ("m.toml", "x.y.a = 'b'"),
        ("m.toml", "="),
        ("m.json", "[]"),
        ("m.json", '{"x": {"a": 1}}'),
        ("m.json", "{"),
    )
    for name, text in texts:
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=rf"^data\.class_map .*{name}: (must be|cannot be)"):
            open_train_data(replace(config, class_map=(str(tmp_path / name),)))


def test_a_table_of_a_dataset_holds_for_it_alone(config, tmp_path):
    def renamed(text, **more):
        (tmp_path / "m.toml").write_text(text)
        return open_train_data(replace(config, class_map=(str(tmp_path / "m.toml"),), **more))

    file = annotation_file(tmp_path)
    both = {"train_also": (f"coco:{file}:{tmp_path / 'train'}",)}
    table = f"c = 'z'\n['{file}']\na = 'x'\nc = 'y'\n"
    dataset = renamed(table, **both)
    assert dataset.class_names == ("a", "b", "z", "x", "y")
    assert labels(dataset) == [[0, 1, 2], [0], [3, 1, 4], [3]]
    assert open_eval_data(replace(config, class_map=(str(tmp_path / "m.toml"),))).class_names == (
        "a",
        "b",
        "z",
    )
    with pytest.raises(UserError, match=r"^data\.class_map: there is no dataset '.*x'; did you"):
        renamed(f"['{config.root}x']\na = 'x'\n")
    with pytest.raises(UserError, match=r"^data\.class_map: there is no class in .* 'd'"):
        renamed(f"['{config.root}']\nd = 'x'\n")
