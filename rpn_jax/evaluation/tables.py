"""Show figures of the evaluation as text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from rpn_jax.evaluation.average_precision import class_figures
from rpn_jax.evaluation.recall import RECALL_FIGURES, first_stage_figures

RECALL_MEANINGS = {
    "AR@100": "100 best proposals of each picture",
    "AR@300": "300 best",
    "AR@1000": "1000 best",
    "AR_small@1000": "... boxes below 32 x 32 pixels",
    "AR_medium@1000": "... up to 96 x 96 pixels",
    "AR_large@1000": "... above 96 x 96 pixels",
}
"""What each figure of the proposals counts."""
DETECTION_MEANINGS = {
    "AP": "mean over IoU 0.50, 0.55 .. 0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "AP_small": "AP of boxes below 32 x 32 pixels",
    "AP_medium": "... up to 96 x 96 pixels",
    "AP_large": "... above 96 x 96 pixels",
    "AR@1": "best detection of each picture and class",
    "AR@10": "10 best",
    "AR@100": "100 best",
    "AR_small@100": "... boxes below 32 x 32 pixels",
    "AR_medium@100": "... up to 96 x 96 pixels",
    "AR_large@100": "... above 96 x 96 pixels",
}
"""What each figure of the detections counts."""
LVIS_MEANINGS = {
    **{name: meaning for name, meaning in DETECTION_MEANINGS.items() if "@" not in name},
    "AP_rare": "... classes in less than 10 training pictures",
    "AP_common": "... in less than 100",
    "AP_frequent": "... in 100 or more",
    "AR@300": "300 best detections of each picture",
    "AR_small@300": "... boxes below 32 x 32 pixels",
    "AR_medium@300": "... up to 96 x 96 pixels",
    "AR_large@300": "... above 96 x 96 pixels",
}
"""What each figure of the detections counts on a federated dataset."""
VOC_MEANINGS = {
    "voc_AP50_11points": "mean of 11 recall levels, as in VOC 2007",
    "voc_AP50_area": "area under the curve, as since VOC 2010",
}
DETECTION_FIGURES = ("AP", "AP50", "AP75")
"""Main figures of the detections."""
CLASSES_IN_A_COLUMN = 12
CLASS_COLUMNS = 3
"""Columns of the table of classes at most. Three of COCO's names fit into 80 characters."""


def recall_line(figures: dict[str, float]) -> str:
    """Return the main figures of the proposals in one line."""
    recalls = ", ".join(f"{name} {figures[name]:.3f}" for name in RECALL_FIGURES)
    return f"{recalls} (proposal)"


def detection_line(figures: dict[str, float]) -> str:
    """Return the main figures of the detections in one line."""
    return ", ".join(f"{name} {figures[name]:.3f}" for name in DETECTION_FIGURES)


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
    for name, meaning in RECALL_MEANINGS.items():
        table.add_row(name, meaning, *map(_cell, (figures.get(name), figures.get(f"fast_{name}"))))
    return table


def detection_table(figures: dict[str, float]) -> Table:
    """Return all figures of a detector: COCO's, those of each class, and the first stage's recall.

    Args:
      figures: result of `evaluate_detections`. Those of `voc_average_precision`, and the recall of
        the proposals (`with_first_stage`), follow in tables of their own if they are there.
    """
    tables = [_coco_table(figures), class_table(class_figures(figures))]
    if figures.keys() >= VOC_MEANINGS.keys():
        tables.append(voc_table(figures))
    recall = first_stage_figures(figures)
    if recall:
        tables.append(recall_table(recall))
    return _below_each_other(tables)


def group_table(figures: Mapping[str, dict[str, float]], names: Sequence[str]) -> Table:
    """Return a table that compares figures between groups of classes.

    Args:
      figures: figures by name, for each group.
      names: names of the figures to show.
    """
    table = Table(
        title="By the classes that the model was trained on",
        caption="seen: objects of data.train_classes. unseen: objects of all other classes. "
        "A dash: there is no such box.",
        caption_justify="left",
    )
    table.add_column("figure")
    for group in figures:
        table.add_column(group, justify="right")
    for name in names:
        table.add_row(name, *(_cell(of_group.get(name)) for of_group in figures.values()))
    return table


def voc_table(figures: dict[str, float]) -> Table:
    """Return a table of the figures of `voc_average_precision`, and one of each class."""
    table = Table(
        title="Average precision (AP) of the detections, by Pascal VOC's rule",
        caption="Mean over the classes at IoU 0.50. Difficult boxes, and detections of them, are "
        "left out.",
        caption_justify="left",
    )
    table.add_column("figure")
    table.add_column("counted")
    table.add_column("value", justify="right")
    tables = [table]
    for name, meaning in VOC_MEANINGS.items():
        table.add_row(name, meaning, _cell(figures[name]))
        of_class = class_figures(figures, prefix=f"{name}/")
        tables.append(class_table(of_class, title=f"{name} of each class"))
    return _below_each_other(tables)


def class_table(figures: dict[str, float], title: str = "AP of each class") -> Table:
    """Return a table of one figure for each class, best first, in up to `CLASS_COLUMNS` columns."""
    table = Table(
        title=title,
        caption="Best first, down the columns. A dash: there is no box of this class.",
        caption_justify="left",
    )
    ranked = sorted(figures.items(), key=lambda item: (math.isnan(item[1]), -item[1]))
    columns = min(CLASS_COLUMNS, math.ceil(len(ranked) / CLASSES_IN_A_COLUMN))
    rows = math.ceil(len(ranked) / max(columns, 1))
    for _ in range(columns):
        table.add_column("class", overflow="fold")
        table.add_column("AP", justify="right", no_wrap=True)
    parts = [ranked[column * rows : (column + 1) * rows] for column in range(columns)]
    for row in itertools.zip_longest(*parts):
        cells: list[Text | str] = []
        for entry in row:
            # Names are data: brackets in them are no markup.
            cells += [Text(entry[0]), _cell(entry[1])] if entry else ["", ""]
        table.add_row(*cells)
    return table


def _coco_table(figures: dict[str, float]) -> Table:
    table = Table(
        title="Average precision (AP) and recall (AR) of the detections",
        caption="COCOeval of boxes. AP: mean over the classes of the area under the "
        "precision-recall curve. AR: share of the ground-truth boxes that are found, mean over the "
        "classes and IoU 0.50, 0.55 .. 0.95. Both leave out crowd boxes. A dash: there is no such "
        "box.",
        caption_justify="left",
    )
    table.add_column("figure")
    table.add_column("counted")
    table.add_column("value", justify="right")
    meanings = LVIS_MEANINGS if "AR@300" in figures else DETECTION_MEANINGS
    for name, meaning in meanings.items():
        table.add_row(name, meaning, _cell(figures.get(name)))
    return table


def _below_each_other(tables: Sequence[Table]) -> Table:
    grid = Table.grid()
    for table in tables:
        grid.add_row(table)
    return grid


def _cell(figure: float | None) -> str:
    return "-" if figure is None or math.isnan(figure) else f"{figure:.3f}"
