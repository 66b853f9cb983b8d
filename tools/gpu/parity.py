"""Section 'parity': the reference's figures in each precision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rpn_jax.benchmark.figures import Row
from rpn_jax.config import Precision
from tools.parity import rows as parity_rows
from tools.parity.cases import PICTURE_PREFIX, case_names, load_case
from tools.parity.network_rows import network_rows
from tools.parity.second_stage_rows import second_stage_rows

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
"""Folder of the cases. Those of picture files need OpenCV, and are left to ``tools.parity``."""
TWO_STAGE = GOLDEN / "two_stage"
FIRST_CASES = ("r50_pytorch", "frcnn_r50")
SMALL_CASE = "r50_caffe_c4"
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
SMALL_PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
HEAD_OUTPUTS = "head outputs"
"""Name of the quantity that is checked in the other precisions too."""
HEAD_TOLERANCE = {"tf32": 0.01, "bfloat16": 0.1}
"""Largest relative L2 difference of the head outputs. docs/parity.md lists what was measured."""


def rows(small: bool) -> Iterator[Row]:
    """Yield a row for each quantity of each case and precision."""
    for precision in SMALL_PRECISIONS if small else PRECISIONS:
        for folder, name in _cases(small):
            case = load_case(folder, name, None, None, precision)
            compare = network_rows if case.num_classes is None else second_stage_rows
            for row in compare(case):
                if row.measured is not None:
                    yield _row(precision, row)


def _cases(small: bool) -> list[tuple[Path, str]]:
    """Return the folder and the name of each case, the most important ones first."""
    if small:
        return [(GOLDEN, SMALL_CASE)]
    cases = [(folder, name) for folder in (GOLDEN, TWO_STAGE) for name in case_names(folder)]
    cases = [case for case in cases if not case[1].startswith(PICTURE_PREFIX)]
    return sorted(cases, key=lambda case: case[1] not in FIRST_CASES)


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
