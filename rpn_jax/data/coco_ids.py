"""Ids of COCO files: whole numbers, or the floats and texts that some programs write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

RawId = int | float | str
"""An id as it is written in a file."""

DIGITS = 19
"""Number of digits of the largest id, 2**63 - 1. Python refuses to convert very long texts."""

T = TypeVar("T")


def plain_id(value: T) -> T | int:
    """Return the whole number that an id stands for (7, 7.0, "7"), or the value itself."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.isdecimal() and len(value) <= DIGITS:
        number = int(value)
        return number if str(number) == value else value
    return value


def whole_ids(ids: Sequence[RawId]) -> list[int]:
    """Return a whole number for each id.

    Ids that stand for whole numbers keep them. If one of them does not, as in ``"a1f3"``, all are
    numbered from 1 in their order.
    """
    plain = [value if type(value) is int else plain_id(value) for value in ids]
    whole = [value for value in plain if isinstance(value, int) and abs(value) < 2**63]
    return whole if len(whole) == len(plain) else list(range(1, len(plain) + 1))
