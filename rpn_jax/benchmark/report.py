"""Results as Markdown tables and as JSON, with the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rpn_jax.benchmark.figures import Section
from rpn_jax.files import write_json

RESULTS_FILE = "benchmark.json"
FORMAT = 1
"""Version of the file. It increases when programs that read the file must change."""


def table(section: Section) -> str:
    """Return a section as a Markdown table with aligned columns: text left, figures right."""
    columns = list(dict.fromkeys(key for row in section.rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in section.rows]
    widths = [max(map(len, texts)) for texts in zip(columns, *cells, strict=True)]
    is_text = [any(isinstance(row.get(column), str) for row in section.rows) for column in columns]

    def line(texts: Sequence[str]) -> str:
        padded = [
            text.ljust(width) if left else text.rjust(width)
            for text, width, left in zip(texts, widths, is_text, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rules = [
        "-" * width if left else "-" * (width - 1) + ":"
        for width, left in zip(widths, is_text, strict=True)
    ]
    lines = [line(columns), line(rules), *map(line, cells)] if section.rows else []
    return "\n".join([f"### {section.name}", "", section.note, "", *lines, ""])


def write_results(
    folder: Path, environment: dict[str, Any], options: dict[str, Any], sections: list[Section]
) -> None:
    """Write ``FOLDER/benchmark.json``.

    Its keys are ``format``, ``environment``, ``options`` and ``sections``. Each section has a
    ``note`` and ``rows``, under its name.

    Raises:
      UserError: the file cannot be written.
    """
    content = {
        "format": FORMAT,
        "environment": environment,
        "options": options,
        "sections": {
            section.name: {"note": section.note, "rows": section.rows} for section in sections
        },
    }
    write_json(folder / RESULTS_FILE, content)


def _cell(value: str | int | float | None) -> str:
    """Format a number with three significant digits and no exponent. Integers stay as they are."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")
