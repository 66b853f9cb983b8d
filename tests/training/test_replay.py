"""A step whose loss is not finite is kept in a file and runs again; and the doctor."""

import io
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from rich.console import Console

from rpn_jax import cli, commands
from rpn_jax.benchmark.inputs import make_batch
from rpn_jax.config import save_config
from rpn_jax.devices import devices_for_batch
from rpn_jax.errors import UserError
from rpn_jax.models import init_variables
from rpn_jax.training import doctor
from rpn_jax.training.loop import NotFiniteError
from rpn_jax.training.optim import detector_optimizer
from rpn_jax.training.replay import replay_step, save_step
from rpn_jax.training.step import initial_state, make_step, replicate, split_batch
from rpn_jax.training.tasks import task_of


@pytest.fixture(scope="module")
def kept(tiny_config, tmp_path_factory):
    """The file of a run whose learning rate is far too high, and the run's error message."""
    optim = replace(tiny_config.optim, learning_rate=1e30, warmup_steps=0)
    train = replace(tiny_config.train, epochs=20, eval_every=0)
    workdir = tmp_path_factory.mktemp("run")
    with pytest.raises(UserError) as error:
        commands.train(replace(tiny_config, optim=optim, train=train), workdir, resume=False)
    [file] = workdir.glob("step_*.npz")
    return file, str(error.value)


def test_the_error_names_the_step_and_the_file(kept):
    file, message = kept
    step = re.search(r"\d+", file.stem)[0]
    assert message.startswith(f"step {step}: ")
    assert message.endswith(f"'rpn-jax replay {file}' runs this step again.")


def test_replay_prints_the_loss_of_the_step_and_of_each_picture(kept, capsys):
    file, message = kept
    assert cli.main(["replay", str(file), "--platform", "cpu"]) == 0
    text = capsys.readouterr().out
    key, value = re.search(r": (loss|grad_norm) is (\S+) on", message).groups()
    assert re.search(rf"^  {key} +{value}$", text, re.MULTILINE)
    assert len(re.findall(r"^  \d+\.png: loss ", text, re.MULTILINE)) == 2


@pytest.mark.parametrize("parts", [1, 2])
def test_replay_draws_the_samples_of_its_step(tiny_config, tmp_path, parts):
    """The second step of a run, with few samples of many anchors, has its figures again."""
    config = replace(
        tiny_config,
        rpn_loss=replace(tiny_config.rpn_loss, samples_per_image=8),
        train=replace(tiny_config.train, gradient_parts=parts),
        data=replace(tiny_config.data, batch_size=2 * len(jax.local_devices())),
    )
    pictures = config.data.batch_size
    devices = devices_for_batch(pictures)
    variables = init_variables(config)
    optimizer, schedule = detector_optimizer(config, variables["params"], 10, pictures)
    step = make_step(
        task_of(config).loss_function,
        optimizer,
        schedule,
        config.train.seed,
        devices,
        gradient_parts=parts,
    )
    batch = jax.device_get(make_batch(pictures, (64, 64), 3, seed=0))
    state, _ = step(replicate(initial_state(variables, optimizer), devices), split_batch(batch))
    before = jax.tree.map(np.array, state)  # The next step reuses the memory.
    _, expected = step(state, split_batch(batch))

    file = tmp_path / "step_2.npz"
    names = [f"{index}.png" for index in range(pictures)]
    save_step(file, config, 10, names, NotFiniteError("", 2, before, batch))
    figures = replay_step(file, Console(file=io.StringIO()))
    assert figures == {name: float(value) for name, value in expected.items()}


def test_a_file_that_is_no_step_is_refused(tiny_config, tmp_path):
    other = tmp_path / "other.npz"
    np.savez(other, a=np.zeros(1))
    text = tmp_path / "config.json"
    save_config(tiny_config, text)
    for path in (other, text):
        with pytest.raises(UserError, match=rf"^{path}: is not a step that training kept"):
            commands.replay(path)


def test_the_doctor_runs_a_step(capsys):
    assert cli.main(["doctor", "--platform", "cpu"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^jax \d", text, re.MULTILINE)
    assert re.search(r"^device 0: cpu$", text, re.MULTILINE)
    assert re.search(r"^a training step on \d+ x cpu took [\d.]+ s", text, re.MULTILINE)


def test_the_doctor_names_missing_extras_and_failures(capsys, monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "_failing_step", lambda console: "no memory")
    assert commands.doctor() == 1
    text = capsys.readouterr().out
    assert "pip install 'rpn-jax[torch]'" in text
    assert "problem: a training step fails: no memory" in text
