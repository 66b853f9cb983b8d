"""Open the dataset that a config names."""

from __future__ import annotations

from pathlib import Path

from rpn_jax.config import DataConfig
from rpn_jax.data.coco import open_coco
from rpn_jax.data.dataset import Dataset
from rpn_jax.data.shapes import Shapes


def open_dataset(config: DataConfig, split: str) -> Dataset:
    """Open a split of the dataset that ``config.dataset`` names.

    Raises:
      UserError: the split or a file is missing, or an annotation is broken.
    """
    match config.dataset:
        case "coco":
            return open_coco(Path(config.root), split, config.clip_boxes)
        case "tfds":
            from rpn_jax.data.tfds import TfdsCoco

            return TfdsCoco(config.root, split, config.clip_boxes)
        case "shapes":
            return Shapes(split)
