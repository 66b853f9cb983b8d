"""Tables of the problems and the statistics of a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from rpn_jax.data.check import Part, Problem
from rpn_jax.data.statistics import REACH

SHOWN_PROBLEMS = 50
"""Number of problems in the table. The JSON file has all of them."""
BAR_WIDTH = 20
"""Width of the longest bar, characters."""


def print_check(
    console: Console, problems: Sequence[Problem], statistics: Mapping[Part, dict[str, Any]]
) -> None:
    """Print the statistics of each part, the reach of the anchors, and the problems."""
    for part, values in statistics.items():
        console.print(statistics_table(part, values))
        if REACH in values:
            console.print(reach_table(values[REACH]))
    if problems:
        console.print(problem_table(problems))
    else:
        console.print("no problems found")


def problem_table(problems: Sequence[Problem]) -> Table:
    """Return a table of the first `SHOWN_PROBLEMS` problems, errors first."""
    title = f"{len(problems)} problems"
    if len(problems) > SHOWN_PROBLEMS:
        title += f", of which {SHOWN_PROBLEMS} are shown. --out FILE.json lists all"
    table = Table("level", "part", "file", "id", "problem", "remedy", title=title)
    for problem in sorted(problems, key=lambda each: each.level)[:SHOWN_PROBLEMS]:
        table.add_row(
            problem.level,
            problem.part,
            problem.file,
            problem.item,
            problem.problem,
            problem.remedy,
        )
    return table


def statistics_table(part: str, statistics: dict[str, Any]) -> Table:
    """Return what `dataset_statistics` counted as a table."""
    table = Table("quantity", "value", title=part)
    for name, value in statistics.items():
        if not isinstance(value, list):
            table.add_row(name, _text(value))
    return table


def reach_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the boxes that no anchor reaches by size, with a bar for their share."""
    table = Table(
        "size in the resized picture",
        "boxes",
        "no anchor",
        "share",
        title=f"{REACH} at IoU 0.5",
    )
    for row in rows:
        share = row["unreached"] / row["boxes"]
        bar = "#" * round(share * BAR_WIDTH)
        cells = (row["size"], str(row["boxes"]), str(row["unreached"]), f"{share:4.0%} {bar}")
        table.add_row(*cells)
    return table


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {number:g}" for name, number in value.items())
    return str(value)
