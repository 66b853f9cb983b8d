"""Object detection datasets of TensorFlow Datasets, read by position and without TensorFlow.

The features are found by their types: the one image at the top, the one sequence with boxes, and
its class label. Names are only used where a type is not enough, see `NAMES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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

SPLITS = {"train2017": "train", "val2017": "validation"}
"""COCO's names of splits, and those of TensorFlow Datasets. Both are accepted."""
NO_LABELS = ("object",)
"""The only class of a dataset without class labels."""
NAMES = {
    "label": ("label", "type"),
    "crowd": ("is_crowd", "is_group_of"),
    "difficult": ("is_difficult", "invalid"),
    "area": ("area",),
    "id": ("id",),
    "image_id": ("image/id",),
    "image_name": ("image/filename", "image/file_name"),
}
"""Names of features that have the same meaning in different datasets.

'type' is that of kitti, 'is_group_of' of open_images_v4, 'is_difficult' of voc, 'invalid' of
wider_face. Ids that are not whole numbers are not used.
"""
VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True)
class Layout:
    """Names of the features of a dataset. None for those that it does not have."""

    image: str
    objects: str
    bbox: str
    label: str | None
    crowd: str | None
    difficult: str | None
    area: str | None
    id: str | None
    image_id: str | None
    image_name: str | None


class TfdsDataset:
    """A split of ``ROOT/NAME/VERSION`` in ArrayRecord format (a `Dataset`).

    Opening reads every record once, for the boxes and the sizes of the pictures. It does not decode
    pixels. The records store boxes as float32 shares of the picture.

    Args:
      root: the data_dir of TensorFlow Datasets.
      name: for example 'coco/2017' or 'kitti'.
      split: for example 'train', or a part of it like 'train[:80%]'. All forms of TensorFlow
        Datasets are allowed.
      clip_boxes: see `assign_objects`.

    Raises:
      UserError: the package, the prepared dataset, its split or its boxes are missing, a file is
        damaged, two pictures have the same id, or an object has no class.
    """

    def __init__(self, root: str, name: str, split: str, clip_boxes: bool) -> None:
        tfds = _import_package()
        folder = _newest_version(Path(root), name)
        with _reading_prepared(folder):
            builder = tfds.builder_from_directory(folder)
        layout, names = find_layout(builder.info.features, name)
        self.class_names = names or NO_LABELS
        self.category_ids = tuple(range(1, len(self.class_names) + 1))
        self._image = layout.image
        split = _known_split(builder, split)
        with _reading_prepared(folder):
            self._records = _open_records(tfds, builder, split, layout)
        pictures, objects = [], []
        for position in range(len(self._records)):
            with _reading_prepared(folder):
                record = self._records[position]
            pictures.append(_picture(record, layout, position, f"{name} {split}"))
            objects.append(_objects(record[layout.objects], layout, pictures[-1]))
            _check_labels(objects[-1], len(self.class_names), pictures[-1])
        _check_different_ids(pictures, folder)
        owner = np.repeat(np.arange(len(pictures)), [len(each.ids) for each in objects])
        self.pictures: Sequence[Picture] = assign_objects(
            pictures, concatenate_objects(objects), owner, f"{name} of {root}", clip_boxes
        )

    def load_image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return RGB pixels. Raises UserError if the record cannot be decoded."""
        return decode_image(self._records[index][self._image], self.pictures[index].name)


def find_layout(features: Any, name: str) -> tuple[Layout, tuple[str, ...]]:
    """Find the features of an object detection dataset.

    Args:
      features: `FeaturesDict` of the dataset.
      name: name of the dataset, for messages.

    Returns:
      The names of the features, and the names of the classes.

    Raises:
      UserError: there is not one image and one sequence with boxes, or the class label is unclear
        or no ClassLabel.
    """
    import tensorflow_datasets as tfds

    kinds = tfds.features
    images = [key for key, feature in features.items() if isinstance(feature, kinds.Image)]
    boxes = [
        (key, inner)
        for key, feature in features.items()
        if isinstance(feature, kinds.Sequence) and isinstance(feature.feature, kinds.FeaturesDict)
        for inner, each in feature.feature.items()
        if isinstance(each, kinds.BBoxFeature)
    ]
    if len(images) != 1 or len(boxes) != 1:
        raise UserError(
            f"{name}: has {len(images)} images and {len(boxes)} sequences with boxes among its "
            f"features ({', '.join(features)}). An object detection dataset has one of each"
        )
    ((objects, bbox),) = boxes
    inside = features[objects].feature
    label = _label_name(
        inside, [k for k, f in inside.items() if isinstance(f, kinds.ClassLabel)], name
    )
    layout = Layout(
        image=images[0],
        objects=objects,
        bbox=bbox,
        label=label,
        crowd=_first("crowd", inside),
        difficult=_first("difficult", inside),
        area=_first("area", inside),
        id=_whole_number("id", inside),
        image_id=_whole_number("image_id", features),
        image_name=_first("image_name", features),
    )
    return layout, tuple(inside[label].names) if label else ()


def _label_name(inside: Any, labels: list[str], name: str) -> str | None:
    """Return the name of the class label. voc and kitti have other labels beside it."""
    known = _first("label", inside)
    if known in labels:
        return known
    if known is not None:
        raise UserError(
            f"{name}: feature '{known}' of the objects is of type {type(inside[known]).__name__}. "
            "It must be a ClassLabel, which lists the names of the classes"
        )
    if len(labels) > 1:
        raise UserError(
            f"features {', '.join(sorted(labels))}: which of them is the class is not known"
        )
    return labels[0] if labels else None


def _first(meaning: str, features: Any) -> str | None:
    return next((name for name in NAMES[meaning] if name in features), None)


def _whole_number(meaning: str, features: Any) -> str | None:
    name = _first(meaning, features)
    is_whole = name is not None and np.issubdtype(features[name].np_dtype, np.integer)
    return name if is_whole else None


def _import_package() -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(
            "data.dataset = 'tfds': needs TensorFlow Datasets: pip install 'rpn-jax[tfds]'"
        ) from None
    return tfds


def _newest_version(root: Path, name: str) -> Path:
    """Return the folder of the newest prepared version.

    By folder, because by name TensorFlow Datasets imports TensorFlow if nothing is prepared.
    """
    folders = [path.parent for path in Path(root, name).glob("*/dataset_info.json")]
    versions = [folder for folder in folders if VERSION.fullmatch(folder.name)]
    if not versions:
        files = root.glob("**/dataset_info.json")
        prepared = sorted({path.parents[1].relative_to(root).as_posix() for path in files})
        raise UserError(
            f"data.root = '{root}': has no {name}/VERSION/dataset_info.json. Prepared datasets "
            f"there: {', '.join(prepared) or 'none'}. Choose one with --data.tfds-name"
        )
    return max(versions, key=lambda path: [int(part) for part in path.name.split(".")])


@contextmanager
def _reading_prepared(folder: Path) -> Iterator[None]:
    """Turn the errors for damaged files of a prepared dataset into a UserError.

    The package and its readers raise many types of errors for them.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join([f"{type(error).__name__}:", *str(error).split()])
        remedy = "Prepare the dataset again"
        raise UserError(f"{folder}: cannot be read ({reason}). {remedy}") from error


def _known_split(builder: Any, split: str) -> str:
    """Return a split, or a part of one, under the names of TensorFlow Datasets.

    Raises:
      UserError: it does not exist, or has no pictures.
    """
    names = builder.info.splits
    for name, other in SPLITS.items():
        if name not in names:
            split = re.sub(rf"\b{name}\b", other, split)
    try:
        has_pictures = names[split].num_examples > 0
    except (ValueError, AssertionError, KeyError):  # one for each kind of mistake
        raise UserError(
            f"split '{split}': {builder.data_dir} has the splits {', '.join(names)}. A part of one "
            "is written like 'train[:80%]'"
        ) from None
    if not has_pictures:
        raise UserError(f"split '{split}' of {builder.data_dir}: has no pictures")
    return split


def _open_records(tfds: Any, builder: Any, split: str, layout: Layout) -> Sequence[dict[str, Any]]:
    """Return the records, with encoded pictures and masks."""
    skip = tfds.decode.SkipDecoding()
    # The package lacks the form for the images inside a sequence, such as the masks of lvis.
    skip.decode_batch_example_np = lambda encoded: encoded
    inside = builder.info.features[layout.objects].feature
    masks = {key: skip for key, each in inside.items() if isinstance(each, tfds.features.Image)}
    decoders = {layout.image: skip, **({layout.objects: masks} if masks else {})}
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError:
        raise UserError(
            f"{builder.data_dir}: can only be read in order. Prepare the dataset with "
            "file_format='array_record'"
        ) from None


def _check_labels(objects: Objects, classes: int, picture: Picture) -> None:
    for label in objects.labels[(objects.labels < 0) | (objects.labels >= classes)][:1]:
        raise UserError(
            f"{picture.name}: an object has label {label}. Labels must be 0 to {classes - 1}. "
            "TensorFlow Datasets writes -1 where an object has no label"
        )


def _check_different_ids(pictures: list[Picture], folder: Path) -> None:
    ids, counts = np.unique([picture.image_id for picture in pictures], return_counts=True)
    for image_id in ids[counts > 1][:1]:
        raise UserError(f"{folder}: two pictures have image/id {image_id}. Ids must differ")


def _picture(record: dict[str, Any], layout: Layout, position: int, source: str) -> Picture:
    name = f"{source} {position}"
    if layout.image_name:
        name = record[layout.image_name].decode()
    image_id = int(record[layout.image_id]) if layout.image_id else position + 1
    height, width = image_size(BytesIO(record[layout.image]), name)
    return Picture(image_id, name, height, width)


def _objects(objects: dict[str, Any], layout: Layout, picture: Picture) -> Objects:
    """Return the objects of a record. It stores boxes as shares: (ymin, xmin, ymax, xmax)."""
    y1, x1, y2, x2 = np.asarray(objects[layout.bbox], np.float64).reshape(-1, 4).T
    size = np.tile([picture.width, picture.height], 2)
    boxes_xywh = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1) * size
    zeros = np.zeros(len(boxes_xywh))

    def values(name: str | None, default: np.ndarray) -> np.ndarray:
        return np.asarray(objects[name]).reshape(-1) if name else default

    return Objects(
        boxes_xywh=boxes_xywh,
        labels=values(layout.label, zeros).astype(np.int32),
        is_crowd=values(layout.crowd, zeros).astype(bool),
        is_difficult=values(layout.difficult, zeros).astype(bool),
        areas=values(layout.area, boxes_xywh[:, 2:].prod(axis=1)).astype(np.float64),
        ids=values(layout.id, zeros).astype(np.int64),
    )
