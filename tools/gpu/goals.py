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

Measure = Callable[[list[Row]], float | None]

MODELS = {"benchmark": "RPN", "detector": "Faster R-CNN"}
"""What each section measures."""


@dataclass(frozen=True)
class Goal:
    """A goal for R50-FPN at 800x1344 on an NVIDIA H200."""

    section: str
    """Section of the results that its figure comes from."""
    name: str
    unit: str
    goal: float
    stretch: float
    lower_is_better: bool
    measure: Measure
    """Returns the figure from the rows of the section, None if it is missing."""


def rows(out: Path) -> Iterator[Row]:
    """Yield a row for each goal."""
    sections = read_json(out / RESULTS_FILE)["sections"]
    environment = sections.get("environment", {}).get("rows", [])
    device = next((row["value"] for row in environment if row["what"] == "device"), "unknown")
    small = read_json(out / RESULTS_FILE)["options"]["small"]
    for goal in GOALS:
        measured = sections.get(goal.section, {}).get("rows", [])
        value = None if small else goal.measure(measured)
        yield {
            "model": MODELS[goal.section],
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


def _goals(
    section: str,
    final_boxes: str,
    milliseconds: tuple[float, float],
    rate: tuple[float, float],
    training_rate: tuple[float, float],
    times_eager: tuple[float, float],
    times_compiled: tuple[float, float],
) -> list[Goal]:
    """Return the goals that both models have. Each pair is a goal and a stretch goal."""

    def ours(stage: str, batch: int, column: str) -> Measure:
        return lambda rows: _ours(rows, stage, batch, column)

    def against(variant: str, batch: int) -> Measure:
        return lambda rows: _against(rows, variant, batch)

    at_once = "bfloat16, batch 1, on the device to " + final_boxes
    in_batches = "bfloat16, batch 16, on the device to " + final_boxes
    training = "training, bfloat16, batch 16"
    eager = "times as fast as eager float32 torchvision, batch 1"
    compiled = "times as fast as compiled bfloat16 torchvision, batch 16"
    table: list[tuple[str, str, tuple[float, float], Measure]] = [
        (at_once, "ms", milliseconds, ours(WHOLE, 1, "median_ms")),
        (in_batches, "pictures/s", rate, ours(WHOLE, 16, "pictures_per_s")),
        (training, "pictures/s", training_rate, ours(STEP, 16, "pictures_per_s")),
        (eager, "times", times_eager, against("torchvision eager float32", 1)),
        (compiled, "times", times_compiled, against("torchvision compile bfloat16", 16)),
    ]
    return [
        Goal(section, name, unit, *pair, unit == "ms", measure)
        for name, unit, pair, measure in table
    ]


GOALS = (
    *_goals("benchmark", "proposals", (1.6, 1.1), (850, 1050), (300, 380), (5, 8), (1.5, 2)),
    Goal(
        "benchmark",
        "share of post-processing at batch 16",
        "%",
        15,
        8,
        lower_is_better=True,
        measure=_post_processing_share,
    ),
    *_goals("detector", "detections", (2.2, 1.6), (700, 850), (230, 300), (5, 5), (1.5, 1.5)),
)
