"""The lines that a run prints before its first step."""

from dataclasses import replace

import pytest

from rpn_jax.console import make_console
from rpn_jax.training.messages import warn_about_schedule


@pytest.mark.parametrize(
    ("optim", "batch_size", "warning"),
    [
        ({"warmup_steps": 6}, 16, "optim.warmup_steps = 6: the run has only 6 steps"),
        ({"warmup_steps": 5}, 16, None),
        (
            {"warmup_steps": 5, "learning_rate": 0.02},
            2,
            "Use --auto-scale-lr, or a rate near 0.0025",
        ),
        ({"warmup_steps": 5, "learning_rate": 0.02, "auto_scale_lr": True}, 2, None),
        ({"warmup_steps": 5, "learning_rate": 0.0025}, 2, None),
        ({"warmup_steps": 5, "learning_rate": 0.02, "base_batch_size": 2}, 2, None),
        ({"warmup_steps": 5, "learning_rate": 0.02}, 64, "or a rate near 0.08 (the linear rule)"),
    ],
)
def test_a_schedule_that_does_not_fit_causes_a_warning(
    tiny_config, capsys, optim, batch_size, warning
):
    config = replace(
        tiny_config,
        optim=replace(tiny_config.optim, **optim),
        data=replace(tiny_config.data, batch_size=batch_size),
    )
    warn_about_schedule(config, 6, make_console())
    said = capsys.readouterr().out
    assert said.count("warning") == (0 if warning is None else 1)
    assert (warning or "") in said
