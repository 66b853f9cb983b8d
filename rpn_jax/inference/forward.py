"""The forward pass of inference: from uint8 pictures to proposals and detections.

Nothing here reads files, so it runs where only JAX, Flax and NumPy are installed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp

from rpn_jax.models import build_detector
from rpn_jax.models.folding import fold_norms
from rpn_jax.models.roi.detections import detect
from rpn_jax.models.rpn.proposals import propose
from rpn_jax.ops.pixels import normalize_images
from rpn_jax.structures import Detections, Proposals, RoIOutputs, RPNOutputs

if TYPE_CHECKING:
    from jax.sharding import Sharding
    from jaxtyping import Array, Float, Int, UInt8

    from rpn_jax.config import Config
    from rpn_jax.structures import Variables

    Levels = tuple[Float[Array, "B _ _ C"], ...]


def prepare_variables(config: Config, variables: Variables, placement: Sharding) -> Variables:
    """Fold the norms into the convolutions and put the result on the devices.

    Args:
      config: config of the network.
      variables: weights of the network, with their norms.
      placement: devices of this process.

    Returns:
      Weights as `run_network` and `propose_pictures` take them.
    """
    folded = fold_norms(
        build_detector(config.model), variables, kernels_ohwi=jax.default_backend() != "cpu"
    )
    return jax.device_put(folded, placement)


def run_features(
    config: Config,
    prepared: Variables,
    images: UInt8[Array, "B H W 3"],
    image_sizes: Int[Array, "B 2"],
) -> Levels:
    """Normalise pictures and return the features that all heads share. Arguments: `run_network`."""
    normalized = normalize_images(images, image_sizes, config.pixels)
    model = build_detector(config.model, folded=True)
    return cast("Levels", model.apply(prepared, normalized, method="features"))


def run_network(
    config: Config,
    prepared: Variables,
    images: UInt8[Array, "B H W 3"],
    image_sizes: Int[Array, "B 2"],
) -> RPNOutputs:
    """Normalise pictures and return the head outputs of the first stage.

    Args:
      config: config of the network.
      prepared: weights from `prepare_variables`.
      images: RGB pictures, resized and padded.
      image_sizes: (height, width) of each picture before padding.
    """
    return _first_stage(config, prepared, images, image_sizes)[1]


def propose_pictures(
    config: Config,
    prepared: Variables,
    images: UInt8[Array, "B H W 3"],
    image_sizes: Int[Array, "B 2"],
    scale_factors: Float[Array, "B 2"],
) -> Proposals:
    """Return the proposals of pictures, in pixels of the originals.

    The arguments are those of `run_network`, and the (width, height) resize factors of each
    picture.
    """
    outputs = run_network(config, prepared, images, image_sizes)
    return propose(config, outputs, image_sizes, scale_factors)


def detect_pictures(
    config: Config,
    prepared: Variables,
    images: UInt8[Array, "B H W 3"],
    image_sizes: Int[Array, "B 2"],
    scale_factors: Float[Array, "B 2"],
) -> Detections:
    """Return the detections of pictures, in pixels of the originals.

    The arguments are those of `propose_pictures`. The config must have a second stage.
    """
    return detect_with_proposals(config, prepared, images, image_sizes, scale_factors)[0]


def detect_with_proposals(
    config: Config,
    prepared: Variables,
    images: UInt8[Array, "B H W 3"],
    image_sizes: Int[Array, "B 2"],
    scale_factors: Float[Array, "B 2"],
) -> tuple[Detections, Proposals]:
    """Return what `detect_pictures` returns, and the proposals that the second stage classified.

    Both are in pixels of the originals. As in the reference, NMS of the proposals uses resized
    pixels here.
    """
    levels, outputs = _first_stage(config, prepared, images, image_sizes)
    proposals = propose(config, outputs, image_sizes)
    model = build_detector(config.model, folded=True)
    roi = cast("RoIOutputs", model.apply(prepared, levels, proposals.boxes, method="roi_outputs"))
    detections = detect(config, roi, proposals.boxes, proposals.valid, image_sizes, scale_factors)
    in_original_pixels = proposals.boxes / jnp.tile(scale_factors, 2)[:, None]
    return detections, replace(proposals, boxes=in_original_pixels)


def _first_stage(
    config: Config,
    prepared: Variables,
    images: UInt8[Array, "B H W 3"],
    image_sizes: Int[Array, "B 2"],
) -> tuple[Levels, RPNOutputs]:
    """Return the features that both stages share, and the head outputs of the first one."""
    levels = run_features(config, prepared, images, image_sizes)
    model = build_detector(config.model, folded=True)
    return levels, cast("RPNOutputs", model.apply(prepared, levels, method="rpn_outputs"))
