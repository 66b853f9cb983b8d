"""Quantities of a case, and their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tools.parity.cases import Case
from tools.parity.rows import Bar, Measured, Row

T = TypeVar("T")


@dataclass(frozen=True)
class Quantity(Generic[T]):
    """Compares one property of a case with this package's results of type T."""

    name: str
    bar: Bar
    fields: tuple[str, ...]
    """Fields that the case must have. ``{picture}`` stands for the number of each picture."""
    measure: Callable[[Case, T], Measured]


def rows_of(case: Case, quantities: Sequence[Quantity[T]], ours: T | None) -> list[Row]:
    """Return a row for each quantity. It has no figure if the case or ``ours`` lacks the data."""
    return [
        Row(
            case.name,
            quantity.name,
            quantity.bar,
            quantity.measure(case, ours) if ours is not None and _has(case, quantity) else None,
        )
        for quantity in quantities
    ]


def _has(case: Case, quantity: Quantity[T]) -> bool:
    pictures = len(case.fields.get("images", [0]))
    names = (field.format(picture=i) for field in quantity.fields for i in range(pictures))
    return all(name in case.fields for name in names)
