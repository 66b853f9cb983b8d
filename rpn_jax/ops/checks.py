"""Checks of the shapes of arguments. They work inside `jit`, too, where shapes are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rpn_jax.errors import UserError


def check_shapes(function: str, arguments: Mapping[str, tuple[Any, str]], **sizes: int) -> None:
    """Check that arrays fit each other.

    Args:
      function: name of the function, for the message.
      arguments: for each argument the array and its axes, such as 'B G 4'. An axis is a number, a
        name that stands for the same size everywhere, or '_' for any size.
      sizes: sizes of names that are known.

    Raises:
      UserError: an array has other axes, or two axes of the same name differ.

    >>> boxes, mask = np.zeros((2, 5, 4)), np.ones((2, 6), bool)
    >>> check_shapes("detect", {"boxes_xyxy": (boxes, "B N 4"), "box_mask": (mask, "B N")})
    Traceback (most recent call last):
    ...
    rpn_jax.errors.UserError: detect: box_mask has the shape (2, 6). It must be (B=2, N=5)
    """
    for name, (array, text) in arguments.items():
        axes, shape = text.split(), np.shape(array)
        known = [int(axis) if axis.isdigit() else sizes.get(axis) for axis in axes]
        fits = len(shape) == len(axes) and all(
            size in (None, found) for size, found in zip(known, shape, strict=True)
        )
        if not fits:
            parts = [f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in axes]
            raise UserError(
                f"{function}: {name} has the shape {shape}. It must be ({', '.join(parts)})"
            )
        sizes |= {axis: size for axis, size in zip(axes, shape, strict=True) if axis[0].isalpha()}
