"""Early stopping: end a run whose main figure no longer improves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rpn_jax.training.metrics import METRICS_FILE, read_metrics


class Patience:
    """Counts the evaluations since the best one.

    Args:
      evaluations: number of evaluations without a better figure that end the run. 0 never ends it.
      earlier: (step, figure) of earlier evaluations. Larger figures are better.
    """

    def __init__(self, evaluations: int, earlier: Sequence[tuple[int, float]]) -> None:
        self._evaluations = evaluations
        self._best_step = 0
        self._best = -math.inf
        self._since = 0
        for step, figure in earlier:
            self.add(step, figure)

    def add(self, step: int, figure: float) -> None:
        """Add the figure of an evaluation after ``step`` steps. NaN is never better."""
        self._since += 1
        if figure > self._best:
            self._best_step, self._best, self._since = step, figure, 0

    @property
    def is_over(self) -> bool:
        """Whether the run should end."""
        return 0 < self._evaluations <= self._since

    def describe(self, name: str) -> str:
        """Return a sentence that says why the run ended. ``name`` is that of the figure."""
        return (
            f"{name} was not above {self._best:.3f}, its value after step {self._best_step}, in "
            f"the last {self._since} evaluations (train.patience = {self._evaluations})"
        )


def earlier_figures(workdir: Path, name: str, last_step: int) -> list[tuple[int, float]]:
    """Return (step, figure) of a run's evaluations until ``last_step``, from ``metrics.jsonl``."""
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    return [
        (row["step"], math.nan if row[name] is None else row[name])
        for row in read_metrics(path)
        if name in row and row["step"] <= last_step
    ]
