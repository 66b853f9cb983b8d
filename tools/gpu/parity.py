"""Section 'parity': the reference's figures in each precision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rpn_jax.benchmark.figures import Row
from rpn_jax.config import Precision
from tools.parity import rows as parity_rows
from tools.parity.cases import PICTURE_PREFIX, case_names, load_case
from tools.parity.network_rows import network_rows

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
"""Folder of the cases. Those of picture files need OpenCV, and are left to ``tools.parity``."""
SMALL_CASE = "r50_caffe_c4"
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
SMALL_PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
HEAD_OUTPUTS = "head outputs"
"""Name of the quantity that is checked in the other precisions too."""
HEAD_TOLERANCE = {"tf32": 0.01, "bfloat16": 0.1}
"""Largest relative L2 difference of the head outputs. docs/parity.md lists what was measured."""


def rows(small: bool) -> Iterator[Row]:
    """Yield a row for each quantity of each case and precision."""
    names = [name for name in case_names(GOLDEN) if not name.startswith(PICTURE_PREFIX)]
    for precision in SMALL_PRECISIONS if small else PRECISIONS:
        for name in [SMALL_CASE] if small else names:
            case = load_case(GOLDEN, name, None, None, precision)
            for row in network_rows(case):
                if row.measured is not None:
                    yield _row(precision, row)


def _row(precision: Precision, row: parity_rows.Row) -> Row:
    assert row.measured is not None
    value = float(row.measured.value)
    columns: Row = {
        "case": row.case,
        "precision": precision,
        "quantity": row.quantity,
        "measured": value,
    }
    if precision == "float32":
        return {**columns, "bar": str(row.bar), "passed": not row.failed}
    if row.quantity == HEAD_OUTPUTS:
        limit = HEAD_TOLERANCE[precision]
        return {**columns, "bar": f"<= {limit:g}", "passed": value <= limit}
    return columns
