"""The forward pass of inference: from uint8 pictures on a canvas to head outputs and proposals.

Nothing here reads files, so it runs where only JAX, Flax and NumPy are installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import jax

from rpn_jax.models import RPN
from rpn_jax.models.folding import fold_norms
from rpn_jax.models.rpn.proposals import propose
from rpn_jax.ops.pixels import normalize_images
from rpn_jax.structures import Proposals, RPNOutputs

if TYPE_CHECKING:
    from jax.sharding import Sharding
    from jaxtyping import Array, Float, Int, UInt8

    from rpn_jax.config import Config
    from rpn_jax.structures import Variables


def prepare_variables(config: Config, variables: Variables, placement: Sharding) -> Variables:
    """Fold the norms into the convolutions and put the result on the devices.

    Args:
      config: config of the network.
      variables: weights of the network, with their norms.
      placement: devices of this process.

    Returns:
      Weights as `run_network` and `propose_pictures` take them.
    """
    folded = fold_norms(RPN(config.model), variables, kernels_ohwi=jax.default_backend() != "cpu")
    return jax.device_put(folded, placement)


def run_network(
    config: Config,
    prepared: Variables,
    images: UInt8[Array, "B H W 3"],
    image_sizes: Int[Array, "B 2"],
) -> RPNOutputs:
    """Normalise pictures and return the head outputs of the network.

    Args:
      config: config of the network.
      prepared: weights from `prepare_variables`.
      images: RGB pictures, resized and padded.
      image_sizes: (height, width) of each picture before padding.
    """
    normalized = normalize_images(images, image_sizes, config.pixels)
    model = RPN(config.model, folded=True)
    return cast("RPNOutputs", model.apply(prepared, normalized))


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
