"""Rows of figures: what is printed is what is written. A column's name ends in its unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rpn_jax.benchmark.device import Peaks
from rpn_jax.benchmark.timing import Program, Timing

Row = dict[str, Any]
"""Text or figure by column; a column that a row has not, or that is None, is not known. What could
not be measured, for want of memory for example, says why as ``failed``."""
FAILURE_LENGTH = 300
"""Characters kept of what failed work said."""


@dataclass(frozen=True)
class Section:
    """A table of results."""

    name: str
    """Its key in the JSON file."""
    note: str
    """What was measured and how, for a reader who sees nothing else."""
    rows: list[Row]


def timing_columns(timing: Timing, pictures: int) -> Row:
    """Times of a call that handles ``pictures`` pictures, and their rate at the median."""
    return {
        "median_ms": 1e3 * timing.median,
        "p10_ms": 1e3 * timing.p10,
        "p90_ms": 1e3 * timing.p90,
        "calls": timing.calls,
        "pictures_per_s": pictures / timing.median,
    }


def program_columns(program: Program) -> Row:
    """What the compiler says of a program."""
    memory = program.memory_bytes
    return {"compile_s": program.compile_seconds, "memory_mb": memory and memory / 1e6}


def roofline_columns(program: Program, timing: Timing, pictures: int, peaks: Peaks) -> Row:
    """Arithmetic of a device's share of the work, ``pictures`` pictures, against its peaks."""
    if program.flops is None or program.bytes_accessed is None:
        return {}
    limit = peaks.roofline_seconds(program.flops, program.bytes_accessed)
    return {
        "gflop_per_picture": program.flops / pictures / 1e9,
        "achieved_tflops": program.flops / timing.median / 1e12,
        "share_of_peak_flops": program.flops / timing.median / peaks.flops_per_second,
        "share_of_roofline": limit / timing.median,
    }


def one_line(error: Exception) -> str:
    """What failed, for a row."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:FAILURE_LENGTH]
