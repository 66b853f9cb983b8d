"""The learning curves of a training run as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from rpn_jax.errors import UserError, writing
from rpn_jax.training.metrics import MetricsRow, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_MARKERS = 30
"""Curves with more points are drawn without markers."""
# Okabe and Ito's colours, which colour-blind people can distinguish.
LINE_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"))


def draw_curves(metrics_path: Path, panels: Mapping[str, tuple[str, ...]], out_path: Path) -> None:
    """Draw the figures of a run against its steps.

    Args:
      metrics_path: the run's ``metrics.jsonl``.
      panels: names of the figures in each panel, by the panel's title.
      out_path: picture file to write.

    Raises:
      UserError: a file cannot be read or written, or there are no metrics.
    """
    from matplotlib.figure import Figure

    rows = read_metrics(metrics_path)
    if not rows:
        raise UserError(f"metrics {metrics_path}: no line to draw. Train for some steps first.")
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        _draw_panel(axes, title, names, rows)
    with writing(f"picture {out_path}"):
        try:
            figure.savefig(out_path, dpi=150)
        except ValueError as error:  # Raised for an unknown file name extension.
            raise UserError(f"picture {out_path}: cannot be written ({error})") from None


def _draw_panel(axes: Axes, title: str, names: tuple[str, ...], rows: list[MetricsRow]) -> None:
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
    for (name, points), (colour, marker) in zip(series.items(), cycle(LINE_STYLES), strict=False):
        shown = marker if len(points) <= MOST_MARKERS else ""
        axes.plot(
            [step for step, _ in points], [value for _, value in points],
            color=colour, marker=shown, markersize=4, linewidth=1.5, label=name,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    if len(names) > 1:
        axes.legend(frameon=False)
