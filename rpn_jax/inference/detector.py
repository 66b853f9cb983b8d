"""Pictures in, boxes with classes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.config import Config, check_part
from rpn_jax.errors import UserError
from rpn_jax.inference.batches import (
    BatchFunction,
    on_all_devices,
    on_shares,
    run_listed,
)
from rpn_jax.inference.forward import detect_pictures, prepare_variables
from rpn_jax.inference.results import PictureDetections, picture_detections
from rpn_jax.structures import Detections, Variables
from rpn_jax.weights.models import check_model, load_model

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from rpn_jax.config import RoIHeadConfig

DetectFunction = BatchFunction[Detections]


def make_detect_function(config: Config) -> DetectFunction:
    """Return `detect_pictures`, compiled for all local devices by `on_shares`."""
    return on_shares(config, detect_pictures)


class Detector:
    """Named boxes for pictures of any size, from a model with a second stage.

        detector = rpn_jax.Detector.load("runs/mine")
        first, second = detector(["a.jpg", array_hwc_uint8_rgb])
        first.boxes_xyxy, first.scores, [detector.class_names[label] for label in first.labels]

    Args:
      config: the network's config. Pictures are resized and padded as ``config.data`` says, and
        ``config.roi_detections`` limits the scores and the number of detections.
      variables: weights of the network.

    Raises:
      UserError: the config has no second stage, or the weights belong to another model.
    """

    def __init__(self, config: Config, variables: Variables) -> None:
        roi = second_stage(config)
        check_model(config, variables)
        self.class_names: tuple[str, ...] = roi.class_names
        """Name of each class. Labels are positions in it."""
        self.category_ids: tuple[int, ...] = roi.category_ids
        """Id of each class in files of COCO results, such as detections.json."""
        self._config = config
        self._prepared = prepare_variables(config, variables, on_all_devices())
        self._function = make_detect_function(config)

    @classmethod
    def load(cls, source: str | Path) -> Detector:
        """Return a detector with the config, the class names and the weights of ``source``.

        Args:
          source: folder of weights, or anything else that `rpn_jax.weights.models.load_model`
            loads.

        Raises:
          UserError: the source cannot be read or downloaded, or does not hold a whole model with a
            second stage.
        """
        return cls(*load_model(source))

    def __call__(
        self, pictures: Sequence[str | Path | UInt8[np.ndarray, "H W 3"]]
    ) -> list[PictureDetections]:
        """Return the detections of each picture, best first, in its original pixels.

        Args:
          pictures: paths, https URLs, or uint8 RGB arrays.

        Returns:
          One entry for each picture, in their order, with ``image_id`` 1, 2, ... With
          ``data.on_bad_picture`` 'skip', a picture that cannot be read has no entry.

        Raises:
          UserError: a file is missing or is not a picture, an array has another shape or type, or
            ``pictures`` is a single picture instead of a list.
        """
        return run_listed(
            self._function, self._prepared, pictures, self._config, picture_detections
        )


def second_stage(config: Config) -> RoIHeadConfig:
    """Return the config of the second stage. Raise a UserError if the model has none."""
    check_part(config, Config)
    if config.model.roi is None:
        raise UserError(
            f"config {config.name}: is an RPN, whose boxes have no classes. Use a Faster R-CNN to "
            "detect, or 'propose' (Proposer in Python) to get boxes without classes."
        )
    return config.model.roi
