"""The convolution of the stem on GPUs, for bfloat16.

Tensor cores multiply blocks of 8 and more channels, and pictures have 3. So 2x2 pixels become one
pixel with 16 channels, the last of every 4 zero. A 7x7 convolution with stride 2 is then a 4x4
convolution with stride 1. It has the same products, and further ones with zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Float

KERNEL, STRIDE = 7, 2
CHANNELS = 4
"""Channels of a pixel after padding."""


def applies(x: Float[Array, "B H W I"], kernel: Float[Array, "k k J O"], stride: int) -> bool:
    """Return whether `convolve_pixel_blocks` computes this convolution, and faster on GPUs."""
    _, height, width, channels = x.shape
    is_stem = kernel.shape[:2] == (KERNEL, KERNEL) and stride == STRIDE
    few_channels = channels == kernel.shape[2] < CHANNELS
    return is_stem and few_channels and height % 2 == width % 2 == 0 and x.dtype == jnp.bfloat16


def convolve_pixel_blocks(
    x: Float[Array, "B H W I"], kernel: Float[Array, "7 7 I O"]
) -> Float[Array, "B h w O"]:
    """Convolve with stride 2 and a padding of 3 pixels. H and W are even, and I is at most 4."""
    channels = CHANNELS - x.shape[3]
    blocks = _blocks(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, channels))))
    # Output pixel i reads the input pixels 2i - 3 to 2i + 3. With a row of zeros before the first
    # they are the blocks i - 2 to i + 1.
    kernel = _blocks(jnp.pad(kernel, ((1, 0), (1, 0), (0, channels), (0, 0))).transpose(3, 0, 1, 2))
    return lax.conv_general_dilated(
        blocks,
        kernel.transpose(1, 2, 3, 0),
        window_strides=(1, 1),
        padding=((2, 1), (2, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _blocks(pixels: Float[Array, "B H W C"]) -> Float[Array, "B H/2 W/2 4*C"]:
    """Return 2x2 pixels as one, with all their channels."""
    batch, height, width, channels = pixels.shape
    pairs = pixels.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return pairs.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4 * channels)
