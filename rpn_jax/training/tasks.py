"""What a training run needs to know about the kind of detector that it trains.

`train_run` is the same for every detector. A detector adds one function like `rpn_task`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType

from rpn_jax.config import Config
from rpn_jax.data.dataset import Dataset
from rpn_jax.evaluation import average_precision, recall
from rpn_jax.evaluation.average_precision import evaluate_detections
from rpn_jax.evaluation.recall import FIRST_STAGE_PREFIX, RECALL_FIGURES, with_first_stage
from rpn_jax.evaluation.recall import evaluate as evaluate_recall
from rpn_jax.evaluation.tables import (
    DETECTION_FIGURES,
    detection_line,
    detection_table,
    recall_line,
    recall_table,
)
from rpn_jax.evaluation.voc import voc_average_precision
from rpn_jax.inference.batches import on_shares, run_with_progress
from rpn_jax.inference.forward import detect_with_proposals
from rpn_jax.inference.proposer import make_propose_function
from rpn_jax.inference.results import (
    PictureDetections,
    PictureProposals,
    picture_detections,
    picture_proposals,
)
from rpn_jax.structures import Detections, Proposals, Variables
from rpn_jax.training.gradients import LossFunction
from rpn_jax.training.objectives import faster_rcnn_loss_function, rpn_loss_function

Figures = dict[str, float]
Results = list[Any]
"""Proposals of each picture, or pairs of detections and proposals, by the kind of detector."""


@dataclass(frozen=True)
class Task:
    """Loss, evaluation and figures of one kind of detector."""

    loss_function: LossFunction
    """Loss of one device's batch."""
    predict: Callable[[Variables, Dataset, Console], Results]
    """(variables, dataset, console for the progress) -> results of each picture."""
    figures: Callable[[Dataset, Results], Figures]
    """(dataset with the ground truth, results of `predict`) -> figures by name."""
    best_by: str
    """Name of the figure that selects the best checkpoint. Larger is better."""
    summary: Callable[[Figures], str]
    """Figures as one line."""
    table: Callable[[Figures], RenderableType]
    """Figures as a table that explains them."""
    curves: Mapping[str, tuple[str, ...]]
    """Names of the figures in each panel of the learning curves, by the panel's title."""
    main_figures: tuple[str, ...]
    """Names of the figures that are compared between groups of classes."""

    def evaluate(self, variables: Variables, dataset: Dataset, console: Console) -> Figures:
        """Return the figures of a dataset."""
        return self.figures(dataset, self.predict(variables, dataset, console))


def task_of(config: Config) -> Task:
    """Return the task of a config: `rpn_task`, or `faster_rcnn_task` if it has a second stage."""
    return rpn_task(config) if config.model.roi is None else faster_rcnn_task(config)


def rpn_task(config: Config) -> Task:
    """Return the task of an RPN: its two losses, and the recall of its proposals."""
    loss_function = rpn_loss_function(config)
    propose_function = make_propose_function(config)

    def predict(variables: Variables, dataset: Dataset, console: Console) -> Results:
        return run_with_progress(
            propose_function, variables, dataset, config, picture_proposals, "proposing", console
        )

    return Task(
        loss_function=loss_function,
        predict=predict,
        figures=lambda dataset, results: evaluate_recall(dataset.pictures, results),
        best_by=recall.BEST_BY,
        summary=recall_line,
        table=recall_table,
        curves={
            "loss": ("loss", "loss_rpn_cls", "loss_rpn_bbox"),
            "learning rate": ("learning_rate",),
            "average recall (protocol proposal)": RECALL_FIGURES,
        },
        main_figures=RECALL_FIGURES,
    )


def faster_rcnn_task(config: Config) -> Task:
    """Return the task of a Faster R-CNN: its four losses, and the AP of its detections.

    The recall of its proposals is measured too, and on data in Pascal VOC's format VOC's AP.
    """
    loss_function = faster_rcnn_loss_function(config)
    function = on_shares(config, detect_with_proposals)

    def predict(variables: Variables, dataset: Dataset, console: Console) -> Results:
        return run_with_progress(
            function, variables, dataset, config, _split_pictures, "detecting", console
        )

    def figures_of(dataset: Dataset, results: Results) -> Figures:
        detections = [detections for detections, _ in results]
        figures = evaluate_detections(dataset, detections)
        if config.data.eval_source.dataset == "voc" and _has_easy_box(dataset):
            figures |= voc_average_precision(dataset, detections, inclusive=True)
        first_stage = evaluate_recall(dataset.pictures, [proposals for _, proposals in results])
        return with_first_stage(figures, first_stage)

    return Task(
        loss_function=loss_function,
        predict=predict,
        figures=figures_of,
        best_by=average_precision.BEST_BY,
        summary=detection_line,
        table=detection_table,
        curves={
            "loss": ("loss", "loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"),
            "learning rate": ("learning_rate",),
            "average precision": DETECTION_FIGURES,
        },
        main_figures=(*DETECTION_FIGURES, *(FIRST_STAGE_PREFIX + name for name in RECALL_FIGURES)),
    )


def _has_easy_box(dataset: Dataset) -> bool:
    """Return whether an object is not difficult, so that VOC's AP is defined."""
    return any(not picture.objects.is_difficult.all() for picture in dataset.pictures)


def _split_pictures(
    image_ids: Sequence[int], outputs: tuple[Detections, Proposals]
) -> list[tuple[PictureDetections, PictureProposals]]:
    detections, proposals = outputs
    return list(
        zip(
            picture_detections(image_ids, detections),
            picture_proposals(image_ids, proposals),
            strict=True,
        )
    )
