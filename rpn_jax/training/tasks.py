"""What a training run needs to know about the kind of detector that it trains.

`train_run` is the same for every detector. A detector adds one function like `rpn_task`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from rpn_jax.config import Config
from rpn_jax.data.dataset import Dataset
from rpn_jax.evaluation.recall import BEST_BY, RECALL_FIGURES
from rpn_jax.evaluation.recall import evaluate as evaluate_recall
from rpn_jax.evaluation.tables import recall_line, recall_table
from rpn_jax.inference.proposer import make_propose_function, propose_with_progress
from rpn_jax.structures import Variables
from rpn_jax.training.objectives import rpn_loss_function
from rpn_jax.training.step import LossFunction

Figures = dict[str, float]


@dataclass(frozen=True)
class Task:
    """Loss, evaluation and figures of one kind of detector."""

    loss_function: LossFunction
    """Loss of one device's batch."""
    evaluate: Callable[[Variables, Dataset, Console], Figures]
    """(variables, dataset, console for the progress) -> figures by name."""
    best_by: str
    """Name of the figure that selects the best checkpoint. Larger is better."""
    summary: Callable[[Figures], str]
    """Figures as one line."""
    table: Callable[[Figures], Table]
    """Figures as a table that explains them."""
    curves: Mapping[str, tuple[str, ...]]
    """Names of the figures in each panel of the learning curves, by the panel's title."""


def rpn_task(config: Config) -> Task:
    """Return the task of an RPN: its two losses, and the recall of its proposals."""
    loss_function = rpn_loss_function(config)
    propose_function = make_propose_function(config)

    def evaluate(variables: Variables, dataset: Dataset, console: Console) -> Figures:
        results = propose_with_progress(propose_function, variables, dataset, config, console)
        return evaluate_recall(dataset.pictures, results)

    return Task(
        loss_function=loss_function,
        evaluate=evaluate,
        best_by=BEST_BY,
        summary=recall_line,
        table=recall_table,
        curves={
            "loss": ("loss", "loss_rpn_cls", "loss_rpn_bbox"),
            "learning rate": ("learning_rate",),
            "average recall (protocol proposal)": RECALL_FIGURES,
        },
    )
