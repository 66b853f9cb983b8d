"""COCO 2017 as TensorFlow Datasets stores it, read by position and without TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rpn_jax.data.annotations import pictures_from_coco
from rpn_jax.data.dataset import Picture
from rpn_jax.data.images import decode_image, image_size
from rpn_jax.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import UInt8

NAME = "coco/2017"
"""Dataset and its config, and so the folder below the root."""
SPLITS = {"train2017": "train", "val2017": "validation"}
"""COCO's names of the splits to those of TensorFlow Datasets, which are taken too."""


class TfdsCoco:
    """A split of ``ROOT/coco/2017/VERSION`` in ArrayRecord format (a `Dataset`).

    Opening reads every record once, for the boxes and the sizes of the pictures. Areas are whole
    pixels there, and boxes float32 shares of the picture.

    Args:
      root: the data_dir of TensorFlow Datasets.
      split: 'train' or 'validation', or COCO's name for it.
      clip_boxes: see `pictures_from_coco`.

    Raises:
      UserError: the package or the prepared dataset is missing, or has no such split.
    """

    def __init__(self, root: str, split: str, clip_boxes: bool) -> None:
        self._records, categories = _open_records(root, SPLITS.get(split, split))
        self.annotations: dict[str, Any] = _coco_annotations(self._records, categories)
        self.pictures: Sequence[Picture] = pictures_from_coco(
            self.annotations, f"{NAME} of {root}", clip_boxes
        )

    def load_image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """RGB pixels. Raises UserError for a record that cannot be decoded."""
        return decode_image(self._records[index]["image"], self.pictures[index].name)


def _open_records(root: str, split: str) -> tuple[Sequence[dict[str, Any]], list[str]]:
    """Records with encoded pictures, and the names of the categories."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(
            "data.dataset = 'tfds': needs TensorFlow Datasets: pip install 'rpn-jax[tfds]'"
        ) from None
    # By folder: asking for the dataset by name imports TensorFlow where it is not prepared.
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
            f"{versions[-1]}: is stored for reading in order; prepare {NAME} with "
            "file_format='array_record'"
        ) from None
    return records, builder.info.features["objects"]["label"].names


def _coco_annotations(
    records: Sequence[dict[str, Any]], categories: Sequence[str]
) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for position in range(len(records)):
        record = records[position]
        image = _coco_image(record)
        images.append(image)
        annotations += _coco_objects(record["objects"], image)
    return {
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name} for number, name in enumerate(categories, start=1)
        ],
    }


def _coco_image(record: dict[str, Any]) -> dict[str, Any]:
    name = record["image/filename"].decode()
    height, width = image_size(BytesIO(record["image"]), name)
    return {"id": int(record["image/id"]), "file_name": name, "height": height, "width": width}


def _coco_objects(objects: dict[str, Any], image: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of one picture; their boxes are (ymin, xmin, ymax, xmax) shares of it."""
    y1, x1, y2, x2 = np.asarray(objects["bbox"], np.float64).reshape(-1, 4).T
    boxes_xywh = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1) * np.tile(
        [image["width"], image["height"]], 2
    )
    fields = (objects["id"], objects["label"], objects["area"], objects["is_crowd"])
    return [
        {
            "id": int(number),
            "image_id": image["id"],
            "category_id": int(label) + 1,
            "bbox": bbox,
            "area": float(area),
            "iscrowd": int(is_crowd),
        }
        for bbox, number, label, area, is_crowd in zip(boxes_xywh.tolist(), *fields, strict=True)
    ]
