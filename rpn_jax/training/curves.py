"""The curves of a training run, drawn from its metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rpn_jax.errors import UserError, reading, writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRIC_GROUPS = {
    "loss": ("loss", "loss_rpn_cls", "loss_rpn_bbox"),
    "learning rate": ("learning_rate",),
    "average recall (protocol proposal)": ("AR@100", "AR@300", "AR@1000"),
}
MOST_MARKERS = 30
"""Points of a curve that are still marked one by one."""
# Okabe and Ito's colours, each with a marker of its own.
LINE_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"))


def draw_curves(metrics_path: Path, out_path: Path) -> None:
    """Draw loss, learning rate and recall of a run against its steps.

    Args:
      metrics_path: the run's ``metrics.jsonl``.
      out_path: picture to write.

    Raises:
      UserError: a file that cannot be read or written, or holds no metrics.
    """
    from matplotlib.figure import Figure

    rows = _read_metrics(metrics_path)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (title, names) in zip(
        figure.subplots(1, len(METRIC_GROUPS)), METRIC_GROUPS.items(), strict=True
    ):
        _draw_group(axes, title, names, rows)
    with writing(f"picture {out_path}"):
        try:
            figure.savefig(out_path, dpi=150)
        except ValueError as error:
            raise UserError(f"picture {out_path}: cannot be written ({error})") from None


def _read_metrics(path: Path) -> list[dict[str, float]]:
    with reading(f"metrics {path}"):
        lines = path.read_text().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            raise UserError(f"metrics {path}: line {number} is not JSON") from None
        if not isinstance(row, dict) or "step" not in row:
            raise UserError(f"metrics {path}: line {number} is no object with a 'step'")
        rows.append(row)
    if not rows:
        raise UserError(f"metrics {path}: is empty, so there is nothing to draw")
    return rows


def _draw_group(
    axes: Axes, title: str, names: tuple[str, ...], rows: list[dict[str, float]]
) -> None:
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    series = {
        name: [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        for name in names
    }
    if not any(series.values()):
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes)
        return
    for (name, points), (colour, marker) in zip(series.items(), LINE_STYLES, strict=False):
        shown = marker if len(points) <= MOST_MARKERS else ""
        axes.plot(
            [step for step, _ in points], [value for _, value in points],
            color=colour, marker=shown, markersize=4, linewidth=1.5, label=name,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    if len(names) > 1:
        axes.legend(frameon=False)
