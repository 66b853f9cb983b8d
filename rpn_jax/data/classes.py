"""Choose, rename and compare the classes of datasets. Classes with the same name are the same."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rpn_jax.config import DataConfig
from rpn_jax.data.dataset import Dataset
from rpn_jax.data.views import relabel, select_labels
from rpn_jax.errors import UserError, nearest
from rpn_jax.files import read_text

ClassMap = dict[str, str | dict[str, str]]
"""New names of classes by their old names. An inner table, by the name of a dataset, holds for that
dataset alone."""
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
    """Return names of classes: those given, or those in the one .txt file that is given.

    Raises UserError if the file cannot be read or has no name.
    """
    if not (len(classes) == 1 and classes[0].endswith(".txt")):
        return list(classes)
    lines = read_text(Path(classes[0])).splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"{classes[0]}: has no name of a class. Write one on each line.")
    return names


def with_listed_names(config: DataConfig) -> DataConfig:
    """Return a config with the names in the files of ``train_classes`` and ``eval_classes``.

    A saved config must not depend on these files. Raises UserError if one cannot be read.
    """
    return replace(
        config,
        train_classes=tuple(read_names(config.train_classes)),
        eval_classes=tuple(read_names(config.eval_classes)),
    )


def read_class_map(entries: Sequence[str]) -> ClassMap:
    """Return the map of class names that ``data.class_map`` describes.

    Args:
      entries: OLD=NEW for each class, or one path of a .toml or .json file with a table of names.

    Raises:
      UserError: the file cannot be read or holds something else, or a class has two new names.
    """
    if len(entries) == 1 and entries[0].endswith(MAP_FILES):
        return _read_map_file(Path(entries[0]))
    class_map: ClassMap = {}
    for old, _, new in (entry.partition("=") for entry in entries):
        first = class_map.setdefault(old, new)
        if first != new:
            raise UserError(f"data.class_map: '{old}' has two new names, '{first}' and '{new}'")
    return class_map


def map_of(class_map: ClassMap, dataset_name: str) -> dict[str, str]:
    """Return the new names of one dataset's classes, by their old names."""
    common = {old: new for old, new in class_map.items() if isinstance(new, str)}
    own = class_map.get(dataset_name, {})
    return common if isinstance(own, str) else {**common, **own}


def check_mapped(class_map: ClassMap, datasets: Mapping[str, Dataset], others: set[str]) -> None:
    """Raise a UserError if the map has a class or a dataset that does not exist.

    Args:
      class_map: map of class names.
      datasets: the datasets to train on, by name.
      others: names of more datasets that may have their own table.
    """
    for key, value in class_map.items():
        if isinstance(value, str):
            _check_known(key, "class", [name for d in datasets.values() for name in d.class_names])
        else:
            _check_known(key, "dataset", [*datasets, *others])
            for old in value if key in datasets else ():
                _check_known(old, f"class in {key}", datasets[key].class_names)


def _check_known(name: str, kind: str, known: Sequence[str]) -> None:
    if name not in known:
        names = list(dict.fromkeys(known))
        hint = nearest(name, names) or "."
        raise UserError(f"data.class_map: there is no {kind} '{name}'{hint} Known: {names}")


def _read_map_file(path: Path) -> ClassMap:
    text = read_text(path)
    try:
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"data.class_map {path}: cannot be read ({error})") from None
    tables = [values]
    if isinstance(values, dict):
        tables += [value for value in values.values() if isinstance(value, dict)]
    for table in tables:
        is_inner = table is not values
        if not isinstance(table, dict) or not all(
            isinstance(new, str) or (isinstance(new, dict) and not is_inner)
            for new in table.values()
        ):
            raise UserError(
                f"data.class_map {path}: must be a table of class names, old = 'new', or hold such "
                "a table for each dataset"
            )
    return values
