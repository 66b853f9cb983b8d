"""Show recall figures as text."""

from __future__ import annotations

import math

from rich.table import Table

from rpn_jax.evaluation.recall import RECALL_FIGURES

MEANINGS = {
    "AR@100": "100 best proposals of each picture",
    "AR@300": "300 best",
    "AR@1000": "1000 best",
    "AR_small@1000": "... boxes below 32 x 32 pixels",
    "AR_medium@1000": "... up to 96 x 96 pixels",
    "AR_large@1000": "... above 96 x 96 pixels",
}
"""What each figure counts."""


def recall_line(figures: dict[str, float]) -> str:
    """Return the main figures in one line."""
    recalls = ", ".join(f"{name} {figures[name]:.3f}" for name in RECALL_FIGURES)
    return f"{recalls} (proposal)"


def recall_table(figures: dict[str, float]) -> Table:
    """Return a table of the figures of `rpn_jax.evaluation.recall.evaluate`, with their meaning."""
    table = Table(
        title="Average recall (AR) of the proposals",
        caption="AR: share of the ground-truth boxes that are found, mean over IoU 0.50, 0.55 .. "
        "0.95. proposal: COCOeval without categories. proposal_fast: greedy match by IoU, the "
        "measure of the published AR1000. Both leave out crowd boxes. A dash: not measured, or "
        "there is no such box.",
        caption_justify="left",
    )
    table.add_column("figure")
    table.add_column("counted")
    table.add_column("proposal", justify="right")
    table.add_column("proposal_fast", justify="right")
    for name, meaning in MEANINGS.items():
        table.add_row(name, meaning, *map(_cell, (figures.get(name), figures.get(f"fast_{name}"))))
    return table


def _cell(figure: float | None) -> str:
    return "-" if figure is None or math.isnan(figure) else f"{figure:.3f}"
