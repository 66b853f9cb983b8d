"""The `Dataset` interface: pictures with their ground truth, and a way to load their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from rpn_jax.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Float64, Int32, Int64, Shaped, UInt8


@dataclass(frozen=True, eq=False)
class Objects:
    """The annotated objects of a picture, crowds included, in the order of the annotations."""

    boxes_xywh: Float64[np.ndarray, "M 4"]
    """(x, y, width, height) in original pixels, as annotated; may reach out of the picture."""
    labels: Int32[np.ndarray, " M"]
    """Class of each object: a position in the dataset's ``class_names``."""
    is_crowd: Bool[np.ndarray, " M"]
    """True where one box covers a group of objects (COCO's 'iscrowd')."""
    is_difficult: Bool[np.ndarray, " M"]
    """True where neither training nor `proposal_fast` counts the object (COCO's 'ignore')."""
    areas: Float64[np.ndarray, " M"]
    """Square pixels, of the outline where the dataset has outlines."""
    ids: Int64[np.ndarray, " M"]
    """Id of each annotation."""

    def select(self, rows: slice | Shaped[np.ndarray, " m"]) -> Objects:
        """Return some of the objects.

        Args:
          rows: a slice, positions, or a mask.
        """
        return Objects(
            self.boxes_xywh[rows],
            self.labels[rows],
            self.is_crowd[rows],
            self.is_difficult[rows],
            self.areas[rows],
            self.ids[rows],
        )


NO_OBJECTS = Objects(
    boxes_xywh=np.zeros((0, 4)),
    labels=np.zeros(0, np.int32),
    is_crowd=np.zeros(0, bool),
    is_difficult=np.zeros(0, bool),
    areas=np.zeros(0),
    ids=np.zeros(0, np.int64),
)


@dataclass(frozen=True, eq=False)
class Verified:
    """What was checked in a picture of a federated dataset, such as LVIS (Gupta et al. 2019).

    Its annotators looked for a few classes in each picture: those with objects, and those here.
    """

    absent: Int32[np.ndarray, " K"]
    """Labels of classes that the picture does not contain (LVIS's 'neg_category_ids')."""
    not_exhaustive: Int32[np.ndarray, " K"]
    """Labels of classes of which some objects may be missing ('not_exhaustive_category_ids')."""


@dataclass(frozen=True, eq=False, slots=True)
class Picture:
    """A picture and its ground truth, known before its pixels are read."""

    image_id: int
    """Id in the ground truth and in results."""
    name: str
    """File name, for messages."""
    height: int
    """Pixels, after EXIF orientation."""
    width: int
    """Pixels, after EXIF orientation."""
    objects: Objects = NO_OBJECTS
    verified: Verified | None = None
    """Classes that were checked. None: all classes, as in COCO."""


@runtime_checkable
class Dataset(Protocol):
    """Pictures in a fixed order, loaded by their position."""

    @property
    def pictures(self) -> Sequence[Picture]:
        """All pictures, with and without objects."""

    @property
    def class_names(self) -> Sequence[str]:
        """Name of each class."""

    @property
    def category_ids(self) -> Sequence[int]:
        """Id of each class in files of ground truth and results."""

    def load_image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return the RGB pixels of ``pictures[index]``. Safe to call from several threads.

        A packed dataset returns fewer pixels than the size of the picture says, see
        `rpn_jax.data.packed`.
        """


@runtime_checkable
class WithFrequencies(Protocol):
    """A dataset that states how frequent its classes are, as LVIS does."""

    @property
    def frequencies(self) -> Mapping[str, str]:
        """'r', 'c' or 'f' (rare, common, frequent) by the name of the class."""


def class_frequencies(dataset: Dataset) -> Mapping[str, str]:
    """Return the frequency of each class that has one, by its name."""
    return dataset.frequencies if isinstance(dataset, WithFrequencies) else {}


def training_boxes(picture: Picture) -> tuple[Float32[np.ndarray, "G 4"], Int32[np.ndarray, " G"]]:
    """Return the boxes of a picture to train on, as xyxy inside the picture, and their labels."""
    size_wh = np.array([(picture.width, picture.height)])
    boxes_xyxy, is_trained = clip_for_training(picture.objects, size_wh)
    return boxes_xyxy[is_trained], picture.objects.labels[is_trained]


def training_box_counts(pictures: Sequence[Picture]) -> Int64[np.ndarray, " N"]:
    """Return for each picture the number of its `training_boxes`."""
    objects = concatenate_objects([picture.objects for picture in pictures])
    owner = np.repeat(
        np.arange(len(pictures)), [len(picture.objects.labels) for picture in pictures]
    )
    sizes_wh = np.array([(picture.width, picture.height) for picture in pictures]).reshape(-1, 2)
    _, is_trained = clip_for_training(objects, sizes_wh[owner])
    return np.bincount(owner[is_trained], minlength=len(pictures))


def check_split(split: str, pictures: Sequence[Picture], remedy: str) -> None:
    """Raise UserError, before any inference, if a split has no box to find."""
    if not has_box_to_find(pictures):
        raise UserError(f"split '{split}': has no box to find, or only crowds; {remedy}")


def has_box_to_find(pictures: Sequence[Picture]) -> bool:
    """Return whether the pictures have an object that is not a crowd."""
    return not all(picture.objects.is_crowd.all() for picture in pictures)


def describe_oddities(split: str, pictures: Sequence[Picture]) -> str:
    """Return one line about annotations that are allowed but rarely meant, or '' without any.

    They are boxes without area, and pictures with the file name of another picture.
    """
    objects = concatenate_objects([picture.objects for picture in pictures])
    has_area = (objects.areas > 0) & (objects.boxes_xywh[:, 2:] > 0).all(axis=1)
    flat = int((~has_area).sum())
    repeated = len(pictures) - len({picture.name for picture in pictures})
    parts = [f"{flat} boxes without area, which are not trained on"] if flat else []
    parts += [f"{repeated} pictures with the file name of another one"] if repeated else []
    return f"note: '{split}' has " + ", and ".join(parts) if parts else ""


def concatenate_objects(parts: Sequence[Objects]) -> Objects:
    """Return the objects of several pictures as one."""
    parts = [NO_OBJECTS, *parts]
    return Objects(
        np.concatenate([part.boxes_xywh for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.is_crowd for part in parts]),
        np.concatenate([part.is_difficult for part in parts]),
        np.concatenate([part.areas for part in parts]),
        np.concatenate([part.ids for part in parts]),
    )


def clip_for_training(
    objects: Objects, sizes_wh: Int64[np.ndarray, "#M 2"]
) -> tuple[Float32[np.ndarray, "M 4"], Bool[np.ndarray, " M"]]:
    """Clip boxes to their pictures and decide which are trained on.

    As in the reference, these are left out: crowds, difficult objects, boxes without area, and
    boxes narrower or lower than one pixel. Boxes outside their picture are left out as well.

    Args:
      objects: objects of one or more pictures.
      sizes_wh: (width, height) of each object's picture, pixels.

    Returns:
      The clipped boxes xyxy, and a mask of those to train on.
    """
    low, sides = objects.boxes_xywh[:, :2], objects.boxes_xywh[:, 2:]
    boxes_xyxy = np.concatenate([low, low + sides], axis=1)
    boxes_xyxy = np.clip(boxes_xyxy, 0, np.tile(sizes_wh, 2))
    is_trained = (
        ~(objects.is_crowd | objects.is_difficult)
        & (objects.areas > 0)
        & (sides >= 1).all(axis=1)
        & (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1)
    )
    return boxes_xyxy.astype(np.float32), is_trained
