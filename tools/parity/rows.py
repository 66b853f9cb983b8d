"""Rows of the table: a quantity, its limit, and the measured figure."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rpn_jax.files import write_json

if TYPE_CHECKING:
    from rich.table import Table


class Measured(NamedTuple):
    """A figure, and the place where it is worst."""

    value: float
    detail: str = ""


@dataclass(frozen=True)
class Bar:
    """The limit that a figure must keep. NaN always fails."""

    limit: float
    unit: str = ""
    at_least: bool = False
    """If true, the figure must be the limit or more. Otherwise it must be the limit or less."""

    def passes(self, value: float) -> bool:
        """Return whether a figure keeps the limit."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Row:
    """One quantity of one case."""

    case: str
    quantity: str
    bar: Bar
    measured: Measured | None
    """None if the case does not have this quantity."""

    @property
    def failed(self) -> bool:
        """Whether the figure was measured and does not keep the limit."""
        return self.measured is not None and not self.bar.passes(self.measured.value)


def table(rows: list[Row]) -> Table:
    """Return a table of all rows for a terminal."""
    from rich.box import SIMPLE
    from rich.table import Table

    result = Table("quantity", title="Parity with the reference", title_justify="left", box=SIMPLE)
    result.add_column("measured", justify="right", no_wrap=True)
    for heading in ("bar", ""):
        result.add_column(heading, no_wrap=True)
    result.add_column("where", overflow="fold")
    for case, of_case in itertools.groupby(rows, lambda row: row.case):
        result.add_row(f"[bold]{case}[/bold]")
        for row in of_case:
            result.add_row(f"  {row.quantity}", *_cells(row))
    return result


def _cells(row: Row) -> tuple[str, str, str, str]:
    from rich.markup import escape

    if row.measured is None:
        return "-", str(row.bar), "", "[dim]not in this case[/dim]"
    verdict = "[bold red]FAIL[/bold red]" if row.failed else "[green]pass[/green]"
    return f"{row.measured.value:.4g}", str(row.bar), verdict, escape(row.measured.detail)


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write the rows as a list of objects. ``measured`` is null if there is no finite figure.

    Raises:
      UserError: the path cannot be written.
    """
    content = [
        {
            "case": row.case,
            "quantity": row.quantity,
            "measured": _finite(row.measured),
            "bar": row.bar.limit,
            "at_least": row.bar.at_least,
            "unit": row.bar.unit,
            "result": "absent" if row.measured is None else "fail" if row.failed else "pass",
            "where": "" if row.measured is None else row.measured.detail,
        }
        for row in rows
    ]
    write_json(path, content)


def _finite(measured: Measured | None) -> float | None:
    return measured.value if measured is not None and math.isfinite(measured.value) else None
