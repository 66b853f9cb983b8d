"""Section 'goals': the goals of docs/performance.md against what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rpn_jax.benchmark.figures import Row
from rpn_jax.benchmark.stages import NETWORK, POST_PROCESSING, WHOLE
from rpn_jax.benchmark.training import STEP
from rpn_jax.files import read_json
from tools.gpu.results import RESULTS_FILE


@dataclass(frozen=True)
class Goal:
    """A goal for R50-FPN at 800x1344 on an NVIDIA H200."""

    name: str
    unit: str
    goal: float
    stretch: float
    lower_is_better: bool
    measure: Callable[[list[Row]], float | None]
    """Returns the figure from the rows of the section 'benchmark', None if it is missing."""


def rows(out: Path) -> Iterator[Row]:
    """Yield a row for each goal."""
    sections = read_json(out / RESULTS_FILE)["sections"]
    measured = sections.get("benchmark", {}).get("rows", [])
    environment = sections.get("environment", {}).get("rows", [])
    device = next((row["value"] for row in environment if row["what"] == "device"), "unknown")
    small = read_json(out / RESULTS_FILE)["options"]["small"]
    for goal in GOALS:
        value = None if small else goal.measure(measured)
        yield {
            "goal": goal.name,
            "unit": goal.unit,
            "goal_value": goal.goal,
            "stretch": goal.stretch,
            "measured": value,
            "result": judge(goal, value),
            "device": device,
        }


def judge(goal: Goal, value: float | None) -> str:
    """Return 'stretch met', 'met', 'not met' or 'not measured'."""
    if value is None:
        return "not measured"
    sign = -1 if goal.lower_is_better else 1
    if sign * value >= sign * goal.stretch:
        return "stretch met"
    return "met" if sign * value >= sign * goal.goal else "not met"


def _ours(rows: list[Row], stage: str, batch: int, column: str) -> float | None:
    """Return a figure of our own program in bfloat16."""
    wanted = {"program": "ours", "stage": stage, "precision": "bfloat16", "batch": batch}
    found = (row for row in rows if wanted.items() <= row.items())
    return next((row.get(column) for row in found), None)


def _post_processing_share(rows: list[Row]) -> float | None:
    part = _ours(rows, POST_PROCESSING, 16, "median_ms")
    whole = _ours(rows, WHOLE, 16, "median_ms")
    return 100 * part / whole if part is not None and whole else None


def _against(rows: list[Row], variant: str, batch: int) -> float | None:
    """Return PyTorch's time over our bfloat16 time of the same stage, end to end if it has that."""
    for stage in (WHOLE, NETWORK):
        for row in rows:
            is_peer = variant in row.get("program", "") and row.get("batch") == batch
            if is_peer and row.get("stage") == stage and row.get("times_ours_bfloat16"):
                return float(row["times_ours_bfloat16"])
    return None


GOALS = (
    Goal(
        "bfloat16, batch 1, picture on the device to proposals",
        "ms",
        1.6,
        1.1,
        True,
        lambda rows: _ours(rows, WHOLE, 1, "median_ms"),
    ),
    Goal(
        "bfloat16, batch 16, pictures on the device to proposals",
        "pictures/s",
        850,
        1050,
        False,
        lambda rows: _ours(rows, WHOLE, 16, "pictures_per_s"),
    ),
    Goal("share of post-processing at batch 16", "%", 15, 8, True, _post_processing_share),
    Goal(
        "training, bfloat16, batch 16",
        "pictures/s",
        300,
        380,
        False,
        lambda rows: _ours(rows, STEP, 16, "pictures_per_s"),
    ),
    Goal(
        "times as fast as eager float32 torchvision, batch 1",
        "times",
        5,
        8,
        False,
        lambda rows: _against(rows, "torchvision eager float32", 1),
    ),
    Goal(
        "times as fast as compiled bfloat16 torchvision, batch 16",
        "times",
        1.5,
        2,
        False,
        lambda rows: _against(rows, "torchvision compile bfloat16", 16),
    ),
)
