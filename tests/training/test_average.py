"""The moving average of the weights and early stopping, in whole runs."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from rpn_jax import commands
from rpn_jax.errors import UserError
from rpn_jax.weights.checkpoints import OPTIMIZER, VARIABLES, Checkpoints
from rpn_jax.weights.trees import read_item

DECAY = 0.9


@pytest.fixture(scope="module")
def config(tiny_config):
    train = replace(tiny_config.train, epochs=3, ema_decay=DECAY, patience=1, keep_last=9)
    # Without a learning rate no evaluation is better than the first.
    optim = replace(tiny_config.optim, learning_rate=1e-30, warmup_steps=0)
    return replace(tiny_config, train=train, optim=optim)


@pytest.fixture(scope="module")
def moving(tiny_config):
    """A run that moves all weights but the stem's, saves every step and evaluates at its end."""
    model = tiny_config.model
    model = replace(model, backbone=replace(model.backbone, frozen_stages=0))
    train = replace(
        tiny_config.train, epochs=1, ema_decay=DECAY, eval_every=1, save_every_steps=1, keep_last=9
    )
    optim = replace(tiny_config.optim, learning_rate=0.1, warmup_steps=0)
    return replace(tiny_config, model=model, train=train, optim=optim)


@pytest.fixture(scope="module")
def workdir(moving, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("moving")
    commands.train(moving, workdir, resume=False)
    return workdir


def params_of(workdir, step):
    """The average and the parameters of a checkpoint, as flat dicts."""
    folder = workdir / "checkpoints" / str(step)
    average = read_item(folder / VARIABLES)["params"]
    named = read_item(folder / OPTIMIZER)
    params = {name[2:]: value for name, value in named.items() if name.startswith("1.")}
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="."): value
        for path, value in jax.tree_util.tree_leaves_with_path(average)
    }
    return flat, params


def test_checkpoints_hold_the_average_and_the_parameters(workdir):
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert len(steps) == 3
    averages, params = zip(*(params_of(workdir, step) for step in steps), strict=True)
    for name in params[0]:
        for earlier, later in ((0, 1), (1, 2)):
            expected = DECAY * averages[earlier][name] + (1 - DECAY) * params[later][name]
            np.testing.assert_allclose(averages[later][name], expected, rtol=1e-5, atol=1e-7)
    differ = {name for name in params[2] if np.any(averages[2][name] != params[2][name])}
    frozen = {name for name in params[2] if name.startswith("backbone.conv1")}
    assert len(frozen) == 1
    assert differ
    assert not differ & frozen


def test_a_resumed_run_with_an_average_ends_with_the_same_bits(moving, workdir, tmp_path):
    last = replace(moving, train=replace(moving.train, epochs=2))
    commands.train(last, tmp_path, resume=False)
    commands.train(last, workdir, resume=True)
    once, resumed = params_of(tmp_path, 6), params_of(workdir, 6)
    for one, other in zip(once, resumed, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_run_keeps_its_average_or_stays_without(moving, workdir):
    without = replace(moving, train=replace(moving.train, epochs=9, ema_decay=0.0))
    with pytest.raises(UserError, match=r"^train.ema_decay = 0: is 0.9 in the run in .* A moving"):
        commands.train(without, workdir, resume=True)


def test_a_run_without_progress_ends_early(config, tmp_path, capsys):
    commands.train(config, tmp_path, resume=False)
    text = " ".join(capsys.readouterr().out.split())
    assert "stopping early: AR@1000 was not above" in text
    assert "its value after step 3, in the last 1 evaluations (train.patience = 1)" in text
    assert "--resume" not in text
    rows = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows if "AR@1000" in row] == [3, 6]


def test_an_evaluation_before_a_crash_counts_once(config, tmp_path, monkeypatch):
    def crash(*_):
        raise RuntimeError("between the line of an evaluation and its checkpoint")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "add_metrics", crash)
        with pytest.raises(RuntimeError, match="between"):
            commands.train(config, tmp_path, resume=False)
    commands.train(config, tmp_path, resume=True)
    rows = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows if "AR@1000" in row] == [3, 6]
