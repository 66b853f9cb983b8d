"""Open the datasets that a config names."""

from __future__ import annotations

from pathlib import Path

from rpn_jax.config import DataConfig, Source
from rpn_jax.data.classes import check_mapped, keep_classes, map_of, read_class_map, rename_classes
from rpn_jax.data.coco import open_coco, open_coco_file
from rpn_jax.data.combined import combine
from rpn_jax.data.dataset import Dataset
from rpn_jax.data.packed import PackedDataset, check_packed_scale, open_packed
from rpn_jax.data.shapes import Shapes
from rpn_jax.data.tfds import TfdsDataset
from rpn_jax.data.voc import open_voc
from rpn_jax.data.yolo import open_yolo


def open_train_data(config: DataConfig) -> Dataset:
    """Open the dataset to train on: that of the root, and those of ``train_also``.

    Raises:
      UserError: a split, file or picture is missing, an annotation is broken, or a class is
        unknown.
    """
    class_map = read_class_map(config.class_map)
    parts = [_open(source, config) for source in config.train_sources]
    names = [source.name for source in config.train_sources]
    check_mapped(class_map, dict(zip(names, parts, strict=True)), {config.eval_source.name})
    renamed = [
        rename_classes(part, map_of(class_map, name))
        for name, part in zip(names, parts, strict=True)
    ]
    dataset = combine(renamed, names)
    return keep_classes(dataset, config.train_classes, "data.train_classes")


def open_eval_data(config: DataConfig) -> Dataset:
    """Open the dataset to evaluate on. Raises the errors of `open_train_data`."""
    dataset = _open(config.eval_source, config)
    class_map = map_of(read_class_map(config.class_map), config.eval_source.name)
    dataset = rename_classes(dataset, class_map)
    return keep_classes(dataset, config.eval_classes, "data.eval_classes")


def open_dataset(config: DataConfig, split: str) -> Dataset:
    """Open a split of the dataset in ``config.root``. Raises the errors of `open_train_data`."""
    return _open(Source(config.dataset, config.root, config.tfds_name, split), config)


def _open(source: Source, config: DataConfig) -> Dataset:
    dataset = open_source(source, config.clip_boxes)
    if isinstance(dataset, PackedDataset):
        check_packed_scale(dataset, config.scale)
    return dataset


def open_source(source: Source, clip_boxes: bool) -> Dataset:
    """Open one dataset. Raises the errors of `open_train_data`."""
    root, split = Path(source.root), source.split
    if source.annotations:
        return open_coco_file(Path(source.annotations), Path(source.images), clip_boxes)
    match source.dataset:
        case "coco":
            return open_coco(root, split, clip_boxes)
        case "voc":
            return open_voc(root, split, clip_boxes)
        case "yolo":
            return open_yolo(root, split, clip_boxes)
        case "tfds":
            return TfdsDataset(source.root, source.tfds_name, split, clip_boxes)
        case "packed":
            return open_packed(root, split)
        case "shapes":
            return Shapes(split)
