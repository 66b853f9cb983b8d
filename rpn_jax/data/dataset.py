"""What a dataset is: pictures with their boxes, and a way to load each one's pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8


@dataclass(frozen=True, eq=False)
class Picture:
    """What is known of a picture before its pixels are read."""

    image_id: int
    """Id in the ground truth and in results."""
    name: str
    """File name, for messages."""
    height: int
    """Pixels, after EXIF orientation."""
    width: int
    """Pixels, after EXIF orientation."""
    boxes_xyxy: Float32[np.ndarray, "G 4"]
    """Boxes to train on, in original pixels, inside the picture; crowd boxes are left out."""


class Dataset(Protocol):
    """Pictures in a fixed order, loaded by their position."""

    @property
    def pictures(self) -> Sequence[Picture]:
        """All pictures, with and without boxes."""

    @property
    def annotations(self) -> dict[str, Any]:
        """COCO ground truth (images, annotations, categories), crowd boxes included."""

    def load_image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """RGB pixels of ``pictures[index]``. Safe to call from several threads."""


def coco_images(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """The 'images' of a COCO file for such pictures."""
    return [
        {
            "id": picture.image_id,
            "file_name": picture.name,
            "height": picture.height,
            "width": picture.width,
        }
        for picture in pictures
    ]
