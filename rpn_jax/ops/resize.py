"""Resizing on the device, in the fixed-point arithmetic of OpenCV's bilinear filter."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax.numpy as jnp

from rpn_jax.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int, UInt8

WEIGHT_BITS = 11
"""OpenCV's weights for 8-bit pixels are multiples of 2**-11."""
BETWEEN_BITS = 7
"""Fraction bits that OpenCV keeps after the horizontal pass."""
SHARE_BITS = 2
"""Fraction bits that OpenCV keeps of each row's share in the vertical pass."""


def resize_bilinear(
    images: UInt8[Array, "*batch h w 3"],
    old_sizes: Int[Array, "*batch 2"],
    new_sizes: Int[Array, "*batch 2"],
    mirrored: Bool[Array, "*batch"],
    canvas: tuple[int, int],
) -> UInt8[Array, "*batch H W 3"]:
    """Resize each picture from its own size to another, flip it if ``mirrored``, and pad it.

    The pixels are those of ``cv2.resize(..., interpolation=cv2.INTER_LINEAR)``: half-pixel centres,
    repeated edges, no antialiasing, OpenCV's rounding. OpenCV computes positions in float64. Where
    this decides a tie of the rounding, a pixel differs by one grey level. Each output pixel reads
    its four neighbours directly, so XLA compiles one kernel without intermediate pictures.

    Args:
      images: RGB, each picture in the upper left corner.
      old_sizes: (height, width) of each picture, pixels, 1 or more.
      new_sizes: (height, width) to resize it to, pixels, 1 or more, within ``canvas``.
      mirrored: True where the resized picture is flipped left to right.
      canvas: (H, W) of the result, static. It holds zeros beyond each new size.

    Raises:
      UserError: the pictures are not uint8.
    """
    if images.dtype != jnp.uint8:
        raise UserError(f"resize_bilinear: images are {images.dtype}. They must be uint8")
    resize = jnp.vectorize(
        partial(_resize_picture, canvas=canvas), signature="(h,w,c),(s),(s),()->(p,q,c)"
    )
    return resize(images, old_sizes, new_sizes, mirrored)


def _resize_picture(
    image: UInt8[Array, "h w 3"],
    old_size: Int[Array, " 2"],
    new_size: Int[Array, " 2"],
    mirrored: Bool[Array, ""],
    canvas: tuple[int, int],
) -> UInt8[Array, "H W 3"]:
    rows, columns = jnp.arange(canvas[0]), jnp.arange(canvas[1])
    inside = (rows < new_size[0])[:, None] & (columns < new_size[1])
    columns = jnp.where(mirrored, new_size[1] - 1 - columns, columns)
    top, bottom, down = _neighbours(rows, old_size[0], new_size[0])
    left, right, across = _neighbours(columns, old_size[1], new_size[1])

    def along(row: Int[Array, " H"]) -> Int[Array, "H W 3"]:
        def at(column: Int[Array, " W"]) -> Int[Array, "H W 3"]:
            pixels = image.at[row[:, None], column].get(mode="promise_in_bounds")
            return pixels.astype(jnp.int32)

        mixed = at(left) * (2**WEIGHT_BITS - across)[:, None] + at(right) * across[:, None]
        return mixed >> (WEIGHT_BITS - BETWEEN_BITS)

    def share(mixed: Int[Array, "H W 3"], weight: Int[Array, " H"]) -> Int[Array, "H W 3"]:
        return (mixed * weight[:, None, None]) >> (BETWEEN_BITS + WEIGHT_BITS - SHARE_BITS)

    total = share(along(top), 2**WEIGHT_BITS - down) + share(along(bottom), down)
    resized = (total + 2 ** (SHARE_BITS - 1)) >> SHARE_BITS
    return jnp.where(inside[..., None], resized, 0).astype(jnp.uint8)


def _neighbours(
    places: Int[Array, " n"], old_side: Int[Array, ""], new_side: Int[Array, ""]
) -> tuple[Int[Array, " n"], Int[Array, " n"], Int[Array, " n"]]:
    """Return the two old pixels around each new one, and the weight of the second in 2**-11."""
    # Integers are exact. Compilers may replace a float division by a product with a reciprocal.
    divisor = 2 * new_side
    whole, rest = jnp.divmod((2 * places + 1) * old_side - new_side, divisor)
    fraction = rest.astype(jnp.float32) / divisor.astype(jnp.float32)
    position = whole.astype(jnp.float32) + fraction
    first = jnp.floor(position)
    weight = jnp.rint((position - first) * 2**WEIGHT_BITS).astype(jnp.int32)
    first = first.astype(jnp.int32)
    return jnp.clip(first, 0, old_side - 1), jnp.clip(first + 1, 0, old_side - 1), weight
