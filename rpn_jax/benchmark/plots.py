"""Plot the results of the benchmark."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpn_jax.errors import UserError
from rpn_jax.files import make_folder, read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]

STAGE_COLUMNS = ("precision", "batch")


def plot_results(results: Path, folder: Path) -> list[Path]:
    """Write a plot of stages and a plot of growth, as far as the results have them.

    Returns:
      The paths of the plots.

    Raises:
      UserError: the results cannot be read, or the folder cannot be written.
    """
    sections = _read_sections(results)
    figures = {
        name: plot(rows)
        for name, plot in (("inference", stages_figure), ("growth", growth_figure))
        if (rows := [row for row in sections.get(name, {}).get("rows", []) if "failed" not in row])
    }
    make_folder(folder)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
    return paths


def stages_figure(rows: Rows) -> Figure:
    """Plot the milliseconds of each stage, with p10 to p90, per precision and batch size."""
    groups = [
        (key, list(group))
        for key, group in itertools.groupby(
            rows, lambda row: tuple(row[column] for column in STAGE_COLUMNS)
        )
    ]
    figure, all_axes = _new_figure(len(groups))
    for axes, ((precision, batch), group) in zip(all_axes, groups, strict=True):
        medians = [row["median_ms"] for row in group]
        below = [row["median_ms"] - row["p10_ms"] for row in group]
        above = [row["p90_ms"] - row["median_ms"] for row in group]
        axes.barh([row["stage"] for row in group], medians, xerr=(below, above), color="#4878a8")
        axes.invert_yaxis()
        axes.set(title=f"{precision}, batch {batch}", xlabel="ms per call, p10 to p90")
    return figure


def growth_figure(rows: Rows) -> Figure:
    """Plot the milliseconds against each axis, with a line for linear growth."""
    groups = [(axis, list(group)) for axis, group in itertools.groupby(rows, lambda r: r["axis"])]
    figure, all_axes = _new_figure(len(groups))
    for axes, (axis, group) in zip(all_axes, groups, strict=True):
        values = [row["value"] for row in group]
        medians = [row["median_ms"] for row in group]
        linear = [medians[0] * value / values[0] for value in values]
        axes.loglog(values, linear, color="0.7", linestyle="--", label="linear")
        axes.loglog(values, medians, color="#4878a8", marker="o", label="measured")
        axes.set(xlabel=axis, ylabel="ms")
        labels = [f"{float(f'{value:.3g}'):g}" for value in values]
        axes.set_xticks(values, labels, fontsize="small")
        axes.tick_params(axis="x", which="minor", labelbottom=False)
        axes.legend(frameon=False)
    return figure


def _new_figure(count: int) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * count, 3.2), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _read_sections(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)["sections"]
    except (KeyError, TypeError):
        raise UserError(f"{path}: is not a result of rpn-jax benchmark") from None
