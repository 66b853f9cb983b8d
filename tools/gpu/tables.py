"""Copy GPU figures into the docs: ``python -m tools.gpu.tables RESULTS.json PAGE.md``.

A table goes between the lines ``<!-- gpu:NAME -->`` and ``<!-- /gpu:NAME -->`` of the page, for
each name in `TABLES`. What stood between the two lines is replaced.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpn_jax.benchmark.figures import Row, Section
from rpn_jax.benchmark.report import table
from rpn_jax.benchmark.training import STEP
from rpn_jax.errors import UserError, exit_code, reading
from rpn_jax.files import read_json, written_whole

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    section: str
    """Section of the results that its rows come from."""
    columns: tuple[str, ...]
    wanted: Callable[[Row], bool]
    """Returns whether the table shows a row."""


def _stages(section: str) -> Table:
    return Table(
        section,
        ("stage", "precision", "batch", "median_ms", "p10_ms", "p90_ms", "pictures_per_s"),
        lambda row: row.get("program") == "ours" and row.get("stage") not in (STEP, None),
    )


def _training_steps(section: str) -> Table:
    return Table(
        section,
        ("precision", "batch", "median_ms", "pictures_per_s", "memory_mb"),
        lambda row: row.get("program") == "ours" and row.get("stage") == STEP,
    )


def _peers(section: str) -> Table:
    return Table(
        section,
        ("program", "stage", "batch", "median_ms", "times_ours_float32", "times_ours_bfloat16"),
        lambda row: row.get("program") not in ("ours", None),
    )


def _all_rows(section: str, *columns: str) -> Table:
    return Table(section, columns, lambda row: True)


TABLES = {
    "goals": _all_rows(
        "goals", "model", "goal", "unit", "goal_value", "stretch", "measured", "result"
    ),
    "inference": _stages("benchmark"),
    "training": _training_steps("benchmark"),
    "peers": _peers("benchmark"),
    "detector-inference": _stages("detector"),
    "detector-training": _training_steps("detector"),
    "detector-peers": _peers("detector"),
    "configs": _all_rows(
        "configs", "config", "precision", "pictures_per_s", "median_ms", "memory_mb"
    ),
    "input": _all_rows(
        "input", "work", "resize", "threads", "batch", "pictures_per_s", "device_pictures_per_s"
    ),
    "operations": _all_rows(
        "operations", "operation", "entries", "largest_difference", "different", "may_differ"
    ),
    "steps": _all_rows("training", "what", "steps", "largest_difference", "same_bits", "passed"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command on ``arguments``, by default those of the process; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.tables", description=__doc__)
    parser.add_argument("results", type=Path, help="results.json of 'python -m tools.gpu'")
    parser.add_argument(
        "page", type=Path, help="page to fill, docs/performance.md or docs/parity.md"
    )
    return exit_code(lambda: _run(parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    with reading(options.page):
        page = options.page.read_text()
    filled = fill(page, read_json(options.results)["sections"], str(options.page))
    with written_whole(options.page) as temporary:
        temporary.write_text(filled)
    return 0


def fill(page: str, sections: dict[str, Any], where: str) -> str:
    """Return the page with every table filled.

    Raises:
      UserError: a marker has no partner, or names no table.
    """
    for name in re.findall(r"<!-- /?gpu:(\S+) -->", page):
        if name not in TABLES:
            raise UserError(f"{where}: unknown marker 'gpu:{name}'. Use one of {list(TABLES)}.")
    for name, shown in TABLES.items():
        first, last = f"<!-- gpu:{name} -->", f"<!-- /gpu:{name} -->"
        if page.count(first) != page.count(last) or page.count(first) > 1:
            raise UserError(f"{where}: needs the lines '{first}' and '{last}', each once or never.")
        before, found, rest = page.partition(first)
        if found:
            after = rest.partition(last)[2]
            page = f"{before}{first}\n{_text(shown, sections)}\n{last}{after}"
    return page


def _text(shown: Table, sections: dict[str, Any]) -> str:
    rows = sections.get(shown.section, {}).get("rows", [])
    cells = [{c: row.get(c) for c in shown.columns} for row in rows if shown.wanted(row)]
    if not cells:
        return NOT_MEASURED
    lines = table(Section(shown.section, "", cells)).splitlines()
    return "\n".join(line for line in lines if line.startswith("|"))


if __name__ == "__main__":
    sys.exit(main())
