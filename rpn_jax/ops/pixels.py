"""Normalisation of pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from rpn_jax.config import PixelConfig, check_part
from rpn_jax.ops.checks import check_shapes

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, UInt8


def normalize_images(
    images: UInt8[Array, "B H W 3"], image_sizes: Int[Array, "B 2"], pixels: PixelConfig
) -> Float[Array, "B H W 3"]:
    """Return (value - mean) * (1 / std) for each channel, and zeros beyond each picture's size.

    Args:
      images: RGB, grey levels 0 to 255.
      image_sizes: (height, width) of each picture before padding, pixels.
      pixels: channel order, means and standard deviations.

    Returns:
      float32, in the channel order of ``pixels``.

    Raises:
      UserError: the arrays do not fit each other, or ``pixels`` is another part of the config.
    """
    check_part(pixels, PixelConfig, "pixels")
    arguments = {"images": (images, "B H W 3"), "image_sizes": (image_sizes, "B 2")}
    check_shapes("normalize_images", arguments)
    channels = images[..., ::-1] if pixels.order == "bgr" else images
    mean = np.asarray(pixels.mean, np.float32)
    inverse_std = (1 / np.asarray(pixels.std, np.float64)).astype(np.float32)
    normalized = (channels.astype(jnp.float32) - mean) * inverse_std
    rows = jnp.arange(images.shape[1]) < image_sizes[:, 0, None]
    columns = jnp.arange(images.shape[2]) < image_sizes[:, 1, None]
    inside = rows[:, :, None] & columns[:, None, :]
    return jnp.where(inside[..., None], normalized, 0.0)
