"""``metrics.jsonl``: the figures of a run, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rpn_jax.errors import UserError, reading

METRICS_FILE = "metrics.jsonl"

MetricsRow = dict[str, Any]
"""``step``, ``epoch`` and figures by name. None stands for a figure that is not a number."""


def metrics_line(row: MetricsRow) -> str:
    """Return a row as a line of the file."""
    return json.dumps(row) + "\n"


def read_metrics(path: Path) -> list[MetricsRow]:
    """Read all rows of a metrics file.

    An unfinished last line is ignored, because a killed run can leave one.

    Raises:
      UserError: the file cannot be read, or a line is not an object with a 'step'.
    """
    with reading(f"metrics {path}"):
        lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    return [_parse(line, f"metrics {path}: line {i}") for i, line in enumerate(lines, start=1)]


def _parse(line: bytes, where: str) -> MetricsRow:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise UserError(f"{where}: is not a JSON object with a 'step'. Remove this line.")
    return row
