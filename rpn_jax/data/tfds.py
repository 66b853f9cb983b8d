"""COCO 2017 as TensorFlow Datasets stores it, read by position and without TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rpn_jax.data.annotations import assign_objects
from rpn_jax.data.dataset import Objects, Picture, concatenate_objects
from rpn_jax.data.images import decode_image, image_size
from rpn_jax.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import UInt8

NAME = "coco/2017"
"""Dataset and its config, and so the folder below the root."""
SPLITS = {"train2017": "train", "val2017": "validation"}
"""COCO's names of the splits, and those of TensorFlow Datasets. Both are accepted."""


class TfdsCoco:
    """A split of ``ROOT/coco/2017/VERSION`` in ArrayRecord format (a `Dataset`).

    Opening reads every record once, for the boxes and the sizes of the pictures. The records store
    areas in whole pixels, and boxes as float32 shares of the picture.

    Args:
      root: the data_dir of TensorFlow Datasets.
      split: 'train' or 'validation', or COCO's name for it.
      clip_boxes: see `assign_objects`.

    Raises:
      UserError: the package or the prepared dataset is missing, or it has no such split.
    """

    def __init__(self, root: str, split: str, clip_boxes: bool) -> None:
        self._records, names = _open_records(root, SPLITS.get(split, split))
        self.class_names = tuple(names)
        self.category_ids = tuple(range(1, len(names) + 1))
        pictures, objects = [], []
        for position in range(len(self._records)):
            record = self._records[position]
            pictures.append(_picture(record))
            objects.append(_objects(record, pictures[-1]))
        owner = np.repeat(np.arange(len(pictures)), [len(each.ids) for each in objects])
        self.pictures: Sequence[Picture] = assign_objects(
            pictures, concatenate_objects(objects), owner, f"{NAME} of {root}", clip_boxes
        )

    def load_image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return RGB pixels. Raises UserError if the record cannot be decoded."""
        return decode_image(self._records[index]["image"], self.pictures[index].name)


def _open_records(root: str, split: str) -> tuple[Sequence[dict[str, Any]], list[str]]:
    """Return the records, with encoded pictures, and the names of the categories."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(
            "data.dataset = 'tfds': needs TensorFlow Datasets: pip install 'rpn-jax[tfds]'"
        ) from None
    # Open by folder: by name, TensorFlow Datasets imports TensorFlow if nothing is prepared.
    versions = sorted(path.parent for path in Path(root, NAME).glob("*/dataset_info.json"))
    if not versions:
        raise UserError(f"data.root = {root!r}: has no {NAME}/VERSION/dataset_info.json")
    builder = tfds.builder_from_directory(versions[-1])
    if split not in builder.info.splits:
        raise UserError(
            f"split '{split}': {versions[-1]} has the splits {', '.join(builder.info.splits)}"
        )
    try:
        records = builder.as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )
    except NotImplementedError:
        raise UserError(
            f"{versions[-1]}: can only be read in order. Prepare {NAME} with "
            "file_format='array_record'"
        ) from None
    return records, builder.info.features["objects"]["label"].names


def _picture(record: dict[str, Any]) -> Picture:
    name = record["image/filename"].decode()
    height, width = image_size(BytesIO(record["image"]), name)
    return Picture(int(record["image/id"]), name, height, width)


def _objects(record: dict[str, Any], picture: Picture) -> Objects:
    """Return the objects of a record. It stores boxes as shares: (ymin, xmin, ymax, xmax)."""
    objects = record["objects"]
    y1, x1, y2, x2 = np.asarray(objects["bbox"], np.float64).reshape(-1, 4).T
    size = np.tile([picture.width, picture.height], 2)
    is_crowd = np.asarray(objects["is_crowd"], bool)
    return Objects(
        boxes_xywh=np.stack([x1, y1, x2 - x1, y2 - y1], axis=1) * size,
        labels=np.asarray(objects["label"], np.int32),
        is_crowd=is_crowd,
        is_difficult=np.zeros_like(is_crowd),
        areas=np.asarray(objects["area"], np.float64),
        ids=np.asarray(objects["id"], np.int64),
    )
