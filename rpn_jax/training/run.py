"""A training run: set up, restore, loop over the epochs, finish."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from rpn_jax.config import (
    BackboneConfig,
    Config,
    TrainConfig,
    config_changes,
    load_config,
    save_config,
)
from rpn_jax.data.catalog import open_eval_data, open_train_data
from rpn_jax.data.dataset import Dataset, describe_oddities
from rpn_jax.data.on_device import finish_resize
from rpn_jax.data.pipeline import prefetch, train_batches
from rpn_jax.data.plan import TrainingPlan, plan_training
from rpn_jax.devices import devices_for_batch
from rpn_jax.errors import UserError
from rpn_jax.evaluation.checks import check_split
from rpn_jax.files import write_json
from rpn_jax.models import build_detector, init_variables, variable_shapes
from rpn_jax.runtime import environment
from rpn_jax.structures import Batch, Variables
from rpn_jax.training.lock import lock_workdir
from rpn_jax.training.log import RunLog
from rpn_jax.training.loop import compile_steps, run_steps
from rpn_jax.training.optim import build_optimizer, trainable_parameters
from rpn_jax.training.signals import stop_on_signals
from rpn_jax.training.step import (
    TrainState,
    initial_state,
    make_step,
    replicate,
    split_batch,
)
from rpn_jax.training.tasks import Figures, Task
from rpn_jax.weights.checkpoints import Checkpoints, Saved, last_saved, restore_state
from rpn_jax.weights.folders import CONFIG_FILE, check_same_model
from rpn_jax.weights.torch import initial_variables, published_backbone

ENVIRONMENT_FILE = "environment.json"


def train_run(config: Config, task: Task, workdir: Path, resume: bool, console: Console) -> None:
    """Train, evaluate and save checkpoints in ``workdir``. See `rpn_jax.commands.train`."""
    # Set up.
    data, train = config.data, config.train
    devices = devices_for_batch(data.batch_size)
    train_data = open_train_data(data)
    plan = plan_training(train_data, data)
    epoch_steps = plan.epoch_steps
    last_step = epoch_steps * train.epochs
    eval_data = open_eval_data(data) if train.eval_every else None
    if eval_data is not None:
        remedy = "Use another --data.eval-split or --train.eval-every 0."
        check_split(data.eval_name, eval_data.pictures, remedy)
    eval_steps = _eval_steps(train, epoch_steps)
    shapes = variable_shapes(config)
    trainable = trainable_parameters(shapes["params"], build_detector(config.model).backbone)
    optimizer, schedule = build_optimizer(config.optim, trainable, epoch_steps, data.batch_size)
    step = make_step(task.loss_function, optimizer, schedule, train.seed, devices)
    # Load the weights before the lock creates the folder, so that a failed load leaves no folder.
    start = _start_variables(config) if last_saved(workdir) is None else None

    with ExitStack() as stack:
        # Restore. All checks of an earlier part come before the first change to its files.
        stack.enter_context(lock_workdir(workdir))
        last = last_saved(workdir)
        if last is not None:
            _check_resumable(last, workdir, resume, epoch_steps, data.batch_size, train.epochs)
            check_same_model(config, workdir)
            expected = jax.eval_shape(partial(initial_state, optimizer=optimizer), shapes)
            arrays = restore_state(workdir, last.step, expected.variables, expected.opt_state)
            state = TrainState(jnp.asarray(last.step, jnp.int32), *arrays)
        else:
            if resume:
                _say(console, f"--workdir {workdir}: has no checkpoint. Training starts at step 1.")
            # Another process can have removed the checkpoints since `start` was set to None.
            state = initial_state(start or _start_variables(config), optimizer)
        state = replicate(state, devices)
        del start  # It would use memory in addition to the state.
        done = int(state.step)

        stack.callback(_print_end, workdir, last_step, console)
        checkpoints = stack.enter_context(
            Checkpoints(workdir, train.keep_last, epoch_steps, task.best_by)
        )
        log = stack.enter_context(
            RunLog(workdir, console, data.batch_size, epoch_steps, done, last_step, train.log_every)
        )
        should_stop = stack.enter_context(stop_on_signals(console))
        _record(config, workdir, console)
        _print_start(config, plan, done, console)
        _print_oddities(data.train_name, train_data, console)
        if eval_data is not None:
            _print_oddities(data.eval_name, eval_data, console)

        def evaluate(state: TrainState) -> Figures:
            assert eval_data is not None
            figures = task.evaluate(state.variables, eval_data, console)
            log.evaluated(int(state.step), figures)
            epoch = int(state.step) // epoch_steps
            is_last = epoch == train.epochs
            console.print(
                task.table(figures) if is_last else f"epoch {epoch}: {task.summary(figures)}"
            )
            return figures

        def save(state: TrainState) -> None:
            figures = None
            try:
                if int(state.step) in eval_steps:
                    figures = evaluate(state)
            finally:  # If the evaluation fails or is interrupted, the epoch is still saved.
                checkpoints.save(int(state.step), state.variables, state.opt_state, figures)

        if last is not None and not last.evaluated and done in eval_steps:
            checkpoints.add_metrics(done, evaluate(state))

        # Loop over the epochs.
        if done < last_step:
            batches = prefetch(train_batches(train_data, plan, train.seed, done), _to_devices)
            compiled = compile_steps(step, state, plan.batch_shapes(), log)
        while done < last_step and not should_stop():
            log.restart_clock()
            steps = epoch_steps - done % epoch_steps
            names = partial(_picture_names, train_data)
            state = run_steps(compiled, state, batches, steps, log, names, should_stop, save)
            done = int(state.step)

    # Finish. A run that was asked to stop ends like an interrupted program.
    if done < last_step:
        raise KeyboardInterrupt


def _eval_steps(train: TrainConfig, epoch_steps: int) -> set[int]:
    """Return the numbers of finished steps after which an evaluation is due."""
    if train.eval_every == 0:
        return set()
    epochs = {*range(train.eval_every, train.epochs + 1, train.eval_every), train.epochs}
    return {epoch * epoch_steps for epoch in epochs}


def _start_variables(config: Config) -> Variables:
    """Return the variables of a new run: random ones, or those of ``train.init_weights``."""
    if config.train.init_weights:
        return initial_variables(config, config.train.init_weights)
    return init_variables(config, config.train.seed)


def _check_resumable(
    last: Saved, workdir: Path, resume: bool, epoch_steps: int, batch_size: int, epochs: int
) -> None:
    """Refuse to continue a run whose finished steps would belong to other epochs."""
    if not resume:
        raise UserError(
            f"--workdir {workdir}: contains a run up to step {last.step}. Add --resume to continue "
            "it, or choose another --workdir."
        )
    if epoch_steps != last.epoch_steps:
        raise UserError(
            f"--workdir {workdir}: an epoch of its run has {last.epoch_steps} steps, but "
            f"{epoch_steps} with data.batch_size = {batch_size} and the pictures of this config. "
            "Use the batch size and pictures of the run, or choose another --workdir."
        )
    started = -(-last.step // epoch_steps)
    if epochs < started:
        raise UserError(
            f"train.epochs = {epochs}: must be {started} or more, because the run in {workdir} has "
            f"already started epoch {started}."
        )


def _record(config: Config, workdir: Path, console: Console) -> None:
    """Write the config and the environment. Print what differs from an earlier part of the run."""
    path = workdir / CONFIG_FILE
    if path.exists():
        for key, old, new in config_changes(load_config(path), config):
            _say(console, f"{key} was {old} in this run until now. It is {new} from here on.")
    save_config(config, path)
    write_json(workdir / ENVIRONMENT_FILE, environment())


def _print_start(config: Config, plan: TrainingPlan, done: int, console: Console) -> None:
    devices = devices_for_batch(config.data.batch_size)
    if len(devices) < jax.local_device_count():
        _say(
            console,
            f"note: data.batch_size = {config.data.batch_size} uses {len(devices)} of the "
            f"{jax.local_device_count()} devices. Choose a multiple of their number to use all.",
        )
    counts = plan.layout.box_counts
    _say(
        console,
        f"training {config.name} on {len(devices)} x {devices[0].device_kind}: "
        f"{len(counts)} pictures with {counts.sum()} boxes in '{config.data.train_name}', "
        f"{config.train.epochs} epochs of {plan.epoch_steps} steps "
        f"of {config.data.batch_size} pictures",
    )
    backbone = config.model.backbone
    if done:
        _say(console, f"continuing after step {done}")
    elif not config.train.init_weights and _has_frozen_weights(backbone):
        published = published_backbone(backbone)
        source = f"{published}, or with a file," if published else "with a file"
        _say(
            console,
            "note: the backbone starts from random weights, and its frozen part keeps them. "
            f"Use --train.init-weights {source} to start from a trained backbone.",
        )


def _print_oddities(split: str, dataset: Dataset, console: Console) -> None:
    oddities = describe_oddities(split, dataset.pictures)
    if oddities:
        _say(console, oddities)


def _has_frozen_weights(backbone: BackboneConfig) -> bool:
    return backbone.frozen_stages >= 0 or backbone.norm == "frozen"


def _print_end(workdir: Path, last_step: int, console: Console) -> None:
    last = last_saved(workdir)
    if last is not None:
        _say(console, f"results are in {workdir}: checkpoints/, metrics.jsonl and event files")
    done = last.step if last else 0
    if done < last_step:
        remedy = ". Use --resume to continue from there." if done else ""
        _say(console, f"stopped after step {done} of {last_step}{remedy}")


def _picture_names(dataset: Dataset, indices: np.ndarray) -> list[str]:
    return [dataset.pictures[index].name for index in indices]


def _to_devices(batch: Batch) -> Batch:
    return finish_resize(split_batch(batch))


def _say(console: Console, text: str) -> None:
    """Print a line without wrapping, so that paths can be copied and lines can be searched."""
    console.print(text, soft_wrap=True)
