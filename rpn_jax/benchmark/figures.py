"""Rows of figures: the same rows are printed and written. A column's name ends in its unit."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rpn_jax.benchmark.device import Peaks
from rpn_jax.benchmark.timing import Program, Timing
from rpn_jax.config import Precision
from rpn_jax.errors import UserError

Row = dict[str, Any]
"""Text or figure by column. A missing column and None mean that the figure is not known. A row with
the column ``failed`` stands for a case that could not be measured and holds the reason."""
FAILURE_LENGTH = 300
"""Maximum number of characters of an error message in a row."""


@dataclass(frozen=True)
class Section:
    """A table of results."""

    name: str
    """Key of the table in the JSON file."""
    note: str
    """What was measured and how, for a reader who sees only this table."""
    rows: list[Row]


def case_columns(precision: Precision, batch_size: int, size: tuple[int, int]) -> Row:
    """Return the columns that tell what is measured. ``size`` is (height, width) in pixels."""
    return {"precision": precision, "batch": batch_size, "size": f"{size[0]}x{size[1]}"}


def timing_columns(timing: Timing, pictures: int) -> Row:
    """Return the times of a call that processes ``pictures`` pictures, and the median's rate."""
    return {
        "median_ms": 1e3 * timing.median,
        "p10_ms": 1e3 * timing.p10,
        "p90_ms": 1e3 * timing.p90,
        "calls": timing.calls,
        "pictures_per_s": pictures / timing.median,
    }


def program_columns(program: Program) -> Row:
    """Return the compile time and the memory of a program."""
    memory = program.memory_bytes
    return {"compile_s": program.compile_seconds, "memory_mb": memory and memory / 1e6}


def roofline_columns(program: Program, timing: Timing, pictures: int, peaks: Peaks) -> Row:
    """Compare one device's part of the work, ``pictures`` pictures, with the device's peaks."""
    if program.flops is None:
        return {}
    columns = {
        "gflop_per_picture": program.flops / pictures / 1e9,
        "achieved_tflops": program.flops / timing.median / 1e12,
        "share_of_peak_flops": program.flops / timing.median / peaks.flops_per_second,
    }
    if program.bytes_accessed is not None:
        limit = peaks.roofline_seconds(program.flops, program.bytes_accessed)
        columns["share_of_roofline"] = limit / timing.median
    return columns


def rows_or_failure(case: Row, measure: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """Yield the rows of a case, each with the columns ``case``.

    If measuring raises an exception, yield a row with ``failed`` and print the traceback on stderr.
    The other cases of a run can then still be measured.

    Raises:
      UserError: the input is wrong. No other case would work.
    """
    try:
        for row in measure():
            yield {**case, **row}
    except UserError:
        raise
    except Exception as error:  # a compiler or a driver can raise anything
        traceback.print_exc()
        yield {**case, "failed": one_line(error)}


def row_or_failure(case: Row, measure: Callable[[], Row]) -> Row:
    """Return the row of a case with the columns ``case``, or one with ``failed``.

    Raises:
      UserError: as `rows_or_failure`.
    """
    (row,) = rows_or_failure(case, lambda: [measure()])
    return row


def one_line(error: Exception) -> str:
    """Return the type and the message of an exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:FAILURE_LENGTH]
