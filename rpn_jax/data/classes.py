"""Choose, rename and compare the classes of datasets. Classes with the same name are the same."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rpn_jax.data.dataset import Dataset
from rpn_jax.data.views import relabel, select_labels
from rpn_jax.errors import UserError, nearest
from rpn_jax.files import read_text

MAP_FILES = (".toml", ".json")
"""Endings of files with a map of class names."""


def keep_classes(dataset: Dataset, classes: Sequence[str], key: str) -> Dataset:
    """Return the dataset with the objects of the given classes. Others are left out.

    Args:
      dataset: dataset with objects of all classes.
      classes: names of classes, or one path of a text file with a name on each line. Empty keeps
        all.
      key: name of the config field, for messages.

    Raises:
      UserError: the dataset has no such class, or the file cannot be read.
    """
    if not classes:
        return dataset
    names, known = read_names(classes), list(dataset.class_names)
    for name in names:
        if name not in known:
            hint = nearest(name, known) or "."
            raise UserError(f"{key}: the dataset has no class '{name}'{hint} It has: {known}")
    return select_labels(dataset, np.isin(known, names))


def seen_and_unseen(dataset: Dataset, train_classes: Sequence[str]) -> dict[str, Dataset]:
    """Return the dataset with the objects of the classes trained on, and with those of the others.

    Args:
      dataset: dataset to evaluate.
      train_classes: ``data.train_classes``, not empty. Names that the dataset lacks are skipped.

    Returns:
      The datasets "seen" and "unseen".
    """
    is_seen = np.isin(list(dataset.class_names), read_names(train_classes))
    return {
        "seen": select_labels(dataset, is_seen),
        "unseen": select_labels(dataset, ~is_seen),
    }


def rename_classes(dataset: Dataset, class_map: Mapping[str, str]) -> Dataset:
    """Return the dataset with some classes renamed. Classes that get the same name become one.

    Args:
      dataset: a dataset.
      class_map: new name by old name. Names that the dataset lacks are skipped.
    """
    if not set(class_map) & set(dataset.class_names):
        return dataset
    renamed = [class_map.get(name, name) for name in dataset.class_names]
    names = list(dict.fromkeys(renamed))
    labels = np.array([names.index(name) for name in renamed], np.int32)
    ids = [dataset.category_ids[renamed.index(name)] for name in names]
    return relabel(dataset, labels, names, ids)


def read_names(classes: Sequence[str]) -> list[str]:
    """Return names of classes: those given, or those in the one .txt file that is given."""
    if len(classes) == 1 and classes[0].endswith(".txt"):
        lines = read_text(Path(classes[0])).splitlines()
        return [line.strip() for line in lines if line.strip()]
    return list(classes)


def read_class_map(entries: Sequence[str]) -> dict[str, str]:
    """Return the new name of each renamed class, by its old name.

    Args:
      entries: OLD=NEW for each class, or one path of a .toml or .json file with a table of names.

    Raises:
      UserError: an entry has another form, or the file cannot be read or holds something else.
    """
    if len(entries) == 1 and entries[0].endswith(MAP_FILES):
        return _read_map_file(Path(entries[0]))
    pairs = [entry.partition("=") for entry in entries]
    return {old: new for old, _, new in pairs}


def check_mapped(class_map: Mapping[str, str], datasets: Sequence[Dataset]) -> None:
    """Raise a UserError if a class to rename is in none of the datasets."""
    known = list(dict.fromkeys(name for dataset in datasets for name in dataset.class_names))
    for name in class_map:
        if name not in known:
            hint = nearest(name, known) or "."
            raise UserError(f"data.class_map: no dataset has a class '{name}'{hint} Known: {known}")


def _read_map_file(path: Path) -> dict[str, str]:
    text = read_text(path)
    try:
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"data.class_map {path}: cannot be read ({error})") from None
    if not isinstance(values, dict) or not all(isinstance(new, str) for new in values.values()):
        raise UserError(f"data.class_map {path}: must be a table of class names: old = 'new'")
    return values
