"""Keep a training step whose loss is not finite in a file, and run it again."""

from __future__ import annotations

import json
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from rpn_jax.config import Config
from rpn_jax.config.files import config_from_values, config_values
from rpn_jax.console import say
from rpn_jax.data.loading import NumpyBatch
from rpn_jax.devices import devices_for_batch
from rpn_jax.errors import UserError
from rpn_jax.files import check_regular_file, written_whole
from rpn_jax.models import variable_shapes
from rpn_jax.structures import Batch
from rpn_jax.training.gradients import Metrics, check_parts
from rpn_jax.training.loop import NotFiniteError
from rpn_jax.training.optim import detector_optimizer
from rpn_jax.training.step import continued_state, initial_state, make_step, replicate, split_batch
from rpn_jax.training.tasks import task_of
from rpn_jax.weights.trees import by_name, check_arrays, host_copy, in_structure

SETTINGS = "settings"
"""Entry of the file with the config, the step and the picture names, as JSON."""


def save_step(
    path: Path, config: Config, epoch_steps: int, names: list[str], error: NotFiniteError
) -> None:
    """Write a step, with the state before it, to an .npz file.

    Args:
      path: file to write.
      config: config of the run.
      epoch_steps: steps in an epoch. The learning rate depends on it.
      names: file names of the batch's pictures.
      error: the step.

    Raises:
      UserError: the file cannot be written.
    """
    settings = {
        "config": config_values(config),
        "step": error.step,
        "epoch_steps": epoch_steps,
        "devices": len(devices_for_batch(config.data.batch_size)),
        "pictures": names,
    }
    batch = {
        field.name: getattr(error.batch, field.name)
        for field in fields(Batch)
        if field.name != "pending_resize"  # It was done before the step.
    }
    parts = {
        "variables": error.state.variables,
        "optimizer": error.state.opt_state,
        "batch": batch,
    }
    arrays = by_name(host_copy(parts))
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{SETTINGS: np.array(json.dumps(settings)), **arrays})


def replay_step(path: Path, console: Console) -> Metrics:
    """Run the step that `save_step` wrote again, print its figures and return them.

    The same program then runs with each picture of the batch alone, in every place of the batch.
    This shows which pictures cause the failure.

    Raises:
      UserError: the file cannot be read, or is not one of `save_step`.
    """
    settings, arrays = _read(path)
    config = config_from_values(settings["config"], path)
    number, names = settings["step"], settings["pictures"]
    devices = devices_for_batch(config.data.batch_size)
    if len(devices) != settings["devices"]:
        say(
            console,
            f"note: the run used {settings['devices']} devices, and {len(devices)} are used now. "
            "Other anchors and boxes are sampled.",
        )
    shapes = variable_shapes(config)
    optimizer, schedule = detector_optimizer(
        config, shapes["params"], settings["epoch_steps"], config.data.batch_size
    )
    check_parts(config.train.gradient_parts, config.data.batch_size)
    step = make_step(
        task_of(config).loss_function,
        optimizer,
        schedule,
        config.train.seed,
        devices,
        gradient_parts=config.train.gradient_parts,
    )
    expected = jax.eval_shape(lambda variables: initial_state(variables, optimizer), shapes)
    variables = _part(path, arrays, "variables", expected.variables)
    opt_state = _part(path, arrays, "optimizer", expected.opt_state)
    batch = NumpyBatch(**_entries(arrays, "batch"))

    def run(batch: Batch) -> Metrics:
        state = replicate(continued_state(number - 1, variables, opt_state), devices)
        _, metrics = step(state, split_batch(batch))
        return {name: float(value) for name, value in jax.device_get(metrics).items()}

    say(console, f"step {number} of {config.name} on the pictures {', '.join(names)}")
    metrics = run(batch)
    for name, value in metrics.items():
        say(console, f"  {name:17} {value:g}")
    say(console, "the same step with one picture in every place of the batch:")
    for place, name in enumerate(names):
        same = [place] * len(names)
        alone = run(jax.tree.map(lambda x, same=same: x[same], batch))
        say(console, f"  {name}: loss {alone['loss']:g}, grad_norm {alone['grad_norm']:g}")
    return metrics


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    check_regular_file(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file.items())
        return json.loads(str(arrays.pop(SETTINGS))), arrays
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path}: is not a step that training kept ({reason}). Name a file "
            "WORKDIR/step_NUMBER.npz."
        ) from None


def _part(path: Path, arrays: dict[str, np.ndarray], part: str, expected: Any) -> Any:
    named = _entries(arrays, part)
    check_arrays(by_name(expected), named, f"{path}: its {part} do not match its config")
    return in_structure(expected, named)


def _entries(arrays: dict[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    prefix = f"{part}."
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
