"""Open the dataset that a config names."""

from __future__ import annotations

from pathlib import Path

from rpn_jax.config import DataConfig
from rpn_jax.data.classes import keep_classes
from rpn_jax.data.coco import open_coco, open_coco_file
from rpn_jax.data.dataset import Dataset
from rpn_jax.data.shapes import Shapes
from rpn_jax.data.tfds import TfdsDataset
from rpn_jax.data.voc import open_voc
from rpn_jax.data.yolo import open_yolo


def open_train_data(config: DataConfig) -> Dataset:
    """Open the dataset to train on.

    Raises:
      UserError: a split, file or picture is missing, or an annotation is broken.
    """
    if config.train_annotations:
        file, folder = Path(config.train_annotations), Path(config.train_images)
        dataset: Dataset = open_coco_file(file, folder, config.clip_boxes)
    else:
        dataset = open_dataset(config, config.train_split)
    return keep_classes(dataset, config.train_classes, "data.train_classes")


def open_eval_data(config: DataConfig) -> Dataset:
    """Open the dataset to evaluate on. Raises the errors of `open_train_data`."""
    if config.eval_annotations:
        file, folder = Path(config.eval_annotations), Path(config.eval_images)
        dataset: Dataset = open_coco_file(file, folder, config.clip_boxes)
    else:
        dataset = open_dataset(config, config.eval_split)
    return keep_classes(dataset, config.eval_classes, "data.eval_classes")


def open_dataset(config: DataConfig, split: str) -> Dataset:
    """Open a split of the dataset in ``config.root``. Raises the errors of `open_train_data`."""
    root = Path(config.root)
    match config.dataset:
        case "coco":
            return open_coco(root, split, config.clip_boxes)
        case "voc":
            return open_voc(root, split, config.clip_boxes)
        case "yolo":
            return open_yolo(root, split, config.clip_boxes)
        case "tfds":
            return TfdsDataset(config.root, config.tfds_name, split, config.clip_boxes)
        case "shapes":
            return Shapes(split)
