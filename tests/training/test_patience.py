"""Early stopping: when a run ends, also after it was resumed."""

import math

import pytest

from rpn_jax.training.metrics import METRICS_FILE, metrics_line
from rpn_jax.training.patience import Patience, earlier_figures


@pytest.mark.parametrize(
    ("evaluations", "figures", "is_over"),
    [
        (2, [], False),
        (2, [0.1], False),
        (2, [0.1, 0.1], False),
        (2, [0.1, 0.1, 0.05], True),
        (2, [0.1, 0.05, 0.2], False),
        (2, [0.1, 0.2, math.nan, 0.2], True),
        (2, [math.nan, math.nan], True),
        (0, [0.3, 0.2, 0.1, 0.0], False),
    ],
)
def test_a_run_ends_after_evaluations_without_a_better_figure(evaluations, figures, is_over):
    assert Patience(evaluations, list(enumerate(figures))).is_over == is_over


def test_the_message_names_the_best_step_and_the_setting():
    patience = Patience(2, [(10, 0.5), (20, 0.25), (30, 0.5)])
    assert patience.describe("AP") == (
        "AP was not above 0.500, its value after step 10, in the last 2 evaluations "
        "(train.patience = 2)"
    )


def test_earlier_figures_are_read_up_to_the_step_of_the_checkpoint(tmp_path):
    rows = [
        {"step": 1, "loss": 0.5},
        {"step": 2, "AP": 0.25, "AR@1000": 0.5},
        {"step": 4, "AP": None},
        {"step": 6, "AP": 0.75},
    ]
    (tmp_path / METRICS_FILE).write_text("".join(map(metrics_line, rows)))
    first, second = earlier_figures(tmp_path, "AP", last_step=4)
    assert first == (2, 0.25)
    assert second[0] == 4
    assert math.isnan(second[1])
    assert earlier_figures(tmp_path / "none", "AP", last_step=4) == []
