"""Results of the sections: the JSON file, the table, and the exit code."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rpn_jax.benchmark.figures import Row, Section
from rpn_jax.benchmark.report import table
from rpn_jax.files import write_json, written_whole

RESULTS_FILE = "results.json"
TABLE_FILE = "results.md"
FORMAT = 1
"""Format number of the JSON file. It rises when a reader of the file has to change."""

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class SectionResult:
    """Result of one section."""

    name: str
    """Name of the section."""
    about: str
    """What the section measures."""
    status: Status
    message: str
    """Why the section failed or was skipped; empty if it passed."""
    seconds: float
    """Time that the section took."""
    rows: list[Row] = field(default_factory=list)
    """Figures. A row that is a check has a bool ``passed``."""


def failed_rows(rows: list[Row]) -> int:
    """Return the number of rows that failed: a check that did not pass, or a case that raised."""
    return sum(row.get("passed") is False or "failed" in row for row in rows)


def write_all(out: Path, options: dict[str, Any], results: list[SectionResult]) -> None:
    """Write the JSON file and the table.

    Raises:
      UserError: a file cannot be written.
    """
    content = {
        "format": FORMAT,
        "options": options,
        "sections": {result.name: asdict(result) for result in results},
    }
    write_json(out / RESULTS_FILE, content)
    with written_whole(out / TABLE_FILE) as temporary:
        temporary.write_text(markdown(results))


def markdown(results: list[SectionResult]) -> str:
    """Return an overview of all sections and a table of each."""
    overview = [
        {
            "section": result.name,
            "result": result.status,
            "seconds": float(result.seconds),
            "message": result.message or None,
        }
        for result in results
    ]
    parts = [table(Section("sections", "One row for each section that ended.", overview))]
    parts += [table(Section(result.name, result.about, result.rows)) for result in results]
    return "\n".join(parts)


def summary(out: Path, results: list[SectionResult], total: int) -> str:
    """Return the last line of the command: where the results are, and how many sections passed."""
    counts = Counter(result.status for result in results)
    words = [f"{counts[status]} {status}" for status in ("passed", "failed", "skipped")]
    if len(results) < total:
        words.append(f"{total - len(results)} not run")
    return (
        f"results are in {out / RESULTS_FILE} and {out / TABLE_FILE}: sections {', '.join(words)}"
    )
