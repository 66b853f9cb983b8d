"""A quantity of a case, and the rows that a list of them makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tools.parity.cases import Case
from tools.parity.rows import Bar, Measured, Row

T = TypeVar("T")


@dataclass(frozen=True)
class Quantity(Generic[T]):
    """Something that is measured between a case and what this package computes for it, a T."""

    name: str
    bar: Bar
    fields: tuple[str, ...]
    """Fields that the case must hold; ``{picture}`` stands for the number of every picture."""
    measure: Callable[[Case, T], Measured]


def rows_of(case: Case, quantities: Sequence[Quantity[T]], ours: T | None) -> list[Row]:
    """A row for each quantity; without figure where the case, or ``ours``, does not have it."""
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
