"""Pictures in, proposals out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.config import Config
from rpn_jax.inference.batches import (
    BatchFunction,
    on_all_devices,
    on_shares,
    run_listed,
)
from rpn_jax.inference.forward import prepare_variables, propose_pictures
from rpn_jax.inference.results import PictureProposals, picture_proposals
from rpn_jax.structures import Proposals, Variables
from rpn_jax.weights.models import check_model, load_model

if TYPE_CHECKING:
    from jaxtyping import UInt8

ProposeFunction = BatchFunction[Proposals]


def make_propose_function(config: Config) -> ProposeFunction:
    """Return `propose_pictures`, compiled for all local devices by `on_shares`."""
    return on_shares(config, propose_pictures)


class Proposer:
    """Proposals for pictures of any size, from any model with an RPN.

        proposer = rpn_jax.Proposer.load("runs/mine")
        first, second = proposer(["a.jpg", array_hwc_uint8_rgb])
        first.boxes_xyxy, first.scores

    Args:
      config: the network's config. Pictures are resized and padded as ``config.data`` says.
      variables: weights of the network.

    Raises:
      UserError: the weights belong to another model.
    """

    def __init__(self, config: Config, variables: Variables) -> None:
        check_model(config, variables)
        self._config = config
        self._prepared = prepare_variables(config, variables, on_all_devices())
        self._function = make_propose_function(config)

    @classmethod
    def load(cls, source: str | Path) -> Proposer:
        """Return a proposer with the config and the weights of ``source``.

        Args:
          source: folder of weights, or anything else that `rpn_jax.weights.models.load_model`
            loads.

        Raises:
          UserError: the source cannot be read or downloaded, or does not hold a whole model.
        """
        return cls(*load_model(source))

    def __call__(
        self, pictures: Sequence[str | Path | UInt8[np.ndarray, "H W 3"]]
    ) -> list[PictureProposals]:
        """Return the proposals of each picture, best first, in its original pixels.

        Args:
          pictures: paths, https URLs, or uint8 RGB arrays.

        Returns:
          One entry for each picture, in their order, with ``image_id`` 1, 2, ... With
          ``data.on_bad_picture`` 'skip', a picture that cannot be read has no entry.

        Raises:
          UserError: a file is missing or is not a picture, an array has another shape or type, or
            ``pictures`` is a single picture instead of a list.
        """
        return run_listed(self._function, self._prepared, pictures, self._config, picture_proposals)
