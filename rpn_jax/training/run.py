"""A training run: set up, restore, loop over the epochs, finish."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from rich.console import Console

from rpn_jax.config import Config, TrainConfig, config_changes
from rpn_jax.console import say
from rpn_jax.data.catalog import open_eval_data, open_train_data
from rpn_jax.data.classes import with_listed_names
from rpn_jax.data.dataset import Dataset, check_split
from rpn_jax.data.model_classes import match_classes, with_classes
from rpn_jax.data.on_device import finish_resize
from rpn_jax.data.pipeline import prefetch, train_batches
from rpn_jax.data.plan import plan_training
from rpn_jax.devices import devices_for_batch
from rpn_jax.errors import UserError
from rpn_jax.hosts.exchange import (
    Vote,
    is_main,
    main_first,
    on_own_device,
    own_positions,
    wait_for_all,
)
from rpn_jax.models import build_detector, init_variables, variable_shapes
from rpn_jax.structures import Batch, Variables
from rpn_jax.training.agreement import check_same_inputs, check_same_step, check_same_weights
from rpn_jax.training.average import SavedParts, saved_parts, state_of, with_average
from rpn_jax.training.gradients import check_parts
from rpn_jax.training.log import QuietLog, RunLog, drop_evaluation
from rpn_jax.training.loop import NotFiniteError, compile_steps, run_steps
from rpn_jax.training.messages import (
    print_end,
    print_oddities,
    print_start,
    timed,
    warn_about_schedule,
)
from rpn_jax.training.optim import detector_optimizer
from rpn_jax.training.outputs import open_checkpoints, own_workdir, record
from rpn_jax.training.patience import Patience, earlier_figures
from rpn_jax.training.profile import PROFILE_FOLDER, profiled
from rpn_jax.training.recipe import choose_settings
from rpn_jax.training.replay import save_step
from rpn_jax.training.saving import SaveTimer, set_aside_damaged
from rpn_jax.training.signals import stop_on_signals
from rpn_jax.training.step import (
    TrainState,
    averaged_variables,
    initial_state,
    make_step,
    replicate,
    split_batch,
)
from rpn_jax.training.tasks import Figures, Results, Task
from rpn_jax.training.trackers import open_trackers
from rpn_jax.weights.checkpoints import Saved, last_saved, restore_newest
from rpn_jax.weights.folders import check_same_model, stored_config
from rpn_jax.weights.torch import initial_variables

DECIDES_WHAT_TRAINS = ("model.backbone.frozen_stages", "model.backbone.train_norm")
"""Keys that decide which parameters have a momentum in the state of the optimiser."""


def train_run(
    config: Config,
    task_of: Callable[[Config], Task],
    workdir: Path,
    resume: bool,
    console: Console,
    on_evaluation: Callable[[Results, Dataset], None],
    given: Collection[str] | None = None,
    trackers: tuple[str, ...] = (),
) -> None:
    """Train, evaluate and save checkpoints in ``workdir``. See `rpn_jax.commands.train`.

    A second stage gets the classes of the dataset. ``task_of`` is called with that config, and
    ``on_evaluation`` after each evaluation with its results and its dataset.
    """
    # Set up.
    devices = devices_for_batch(config.data.batch_size)
    check_parts(config.train.gradient_parts, config.data.batch_size)
    build_detector(config.model)  # A model that cannot be built is refused before the data is read.
    config, train_data = _open_train_data(config, given, console)
    data, train = config.data, config.train
    task = task_of(config)
    plan = plan_training(train_data, data)
    epoch_steps = plan.epoch_steps
    last_step = epoch_steps * train.epochs
    eval_data = _open_eval_data(config) if train.eval_every else None
    datasets = [(data.train_name, train_data)]
    if eval_data is not None:
        datasets.append((data.eval_name, eval_data))
    check_same_inputs(config, datasets)
    eval_steps = _eval_steps(train, epoch_steps)
    shapes = variable_shapes(config)
    optimizer, schedule = detector_optimizer(config, shapes["params"], epoch_steps, data.batch_size)
    step = make_step(
        task.loss_function,
        optimizer,
        schedule,
        train.seed,
        devices,
        train.ema_decay,
        train.gradient_parts,
    )
    new_state = partial(_new_state, optimizer=optimizer, ema_decay=train.ema_decay)
    # Load the weights before the lock creates the folder, so that a failed load leaves no folder.
    start = None
    if last_saved(workdir) is None:
        with timed(console, "preparing the initial weights"):
            start = _start_variables(config, console)

    with ExitStack() as stack:
        # Restore. All checks of an earlier part come before the first change to its files.
        stack.enter_context(own_workdir(workdir))
        last = last_saved(workdir)
        if last is not None:
            _check_resumable(last, workdir, resume, epoch_steps, data.batch_size, train.epochs)
            check_same_model(config, workdir)
            _check_same_parts(workdir, config)
            expected = saved_parts(jax.eval_shape(new_state, shapes))
            last, state = _restore(workdir, expected, train.ema_decay, console)
        else:
            if resume:
                say(console, f"--workdir {workdir}: has no checkpoint. Training starts at step 1.")
            # Another process can have removed the checkpoints since `start` was set to None.
            start = start or _start_variables(config, console)
            check_same_step(workdir, 0)
            check_same_weights(start)
            state = new_state(start)
        state = replicate(state, devices)
        del start  # It would use memory in addition to the state.
        done = int(state.step)

        # A run that was killed after the last checkpoint can have written its evaluation already.
        evaluates_again = last is not None and not last.evaluated and done in eval_steps
        # Read before the log removes lines.
        earlier = earlier_figures(workdir, task.best_by, done - evaluates_again)
        patience = Patience(train.patience, earlier)
        log: RunLog | QuietLog = QuietLog(done)
        if is_main():
            if evaluates_again:
                drop_evaluation(workdir, done, task.best_by)
            log = RunLog(
                workdir,
                console,
                data.batch_size,
                epoch_steps,
                done,
                last_step,
                train.log_every,
                open_trackers(trackers, config, workdir),
            )
        stack.callback(print_end, workdir, log, last_step, patience, console)
        checkpoints = stack.enter_context(
            open_checkpoints(workdir, train.keep_last, epoch_steps, task.best_by)
        )
        stack.enter_context(log)
        should_stop = _together(stack.enter_context(stop_on_signals(console)))
        record(config, workdir, done, console)
        print_start(config, plan, last, console)
        warn_about_schedule(config, last_step, console)
        for name, dataset in datasets:
            print_oddities(name, dataset, console)

        def evaluate(state: TrainState) -> Figures:
            assert eval_data is not None
            variables = on_own_device(averaged_variables(state))
            results = task.predict(variables, eval_data, console)
            figures = task.figures(eval_data, results)
            log.evaluated(int(state.step), figures)
            patience.add(int(state.step), figures[task.best_by])
            epoch = int(state.step) // epoch_steps
            is_last = epoch == train.epochs
            console.print(
                task.table(figures) if is_last else f"epoch {epoch}: {task.summary(figures)}"
            )
            on_evaluation(results, eval_data)
            return figures

        timer = SaveTimer(train.save_every_steps, train.save_every_minutes)

        def save(state: TrainState) -> None:
            # Save before the evaluation. A run that is killed in an evaluation loses no step.
            step = int(state.step)
            checkpoints.save(step, *saved_parts(state))
            timer.restart()
            if step in eval_steps:
                checkpoints.add_metrics(step, evaluate(state))

        if evaluates_again:
            checkpoints.add_metrics(done, evaluate(state))

        # Loop over the epochs.
        if done < last_step:
            positions = own_positions(data.batch_size)
            host_batches = train_batches(train_data, plan, train.seed, done, positions)
            batches = prefetch(host_batches, _to_devices)
            if is_main() and train.profile_steps:
                folder = workdir / PROFILE_FOLDER
                recorded = profiled(batches, folder, train.profile_steps, console)
                # Write the trace also if the run ends early.
                batches = stack.enter_context(closing(recorded))
            compiled = compile_steps(step, state, plan.batch_shapes(), log)
            # On CPUs, all processes must begin the first step within 30 s (Gloo's limit).
            wait_for_all()
        while done < last_step and not patience.is_over and not should_stop():
            log.restart_clock()
            steps = epoch_steps - done % epoch_steps
            names = partial(_picture_names, train_data)
            try:
                state = run_steps(
                    compiled, state, batches, steps, log, names, should_stop, timer.due, save
                )
            except NotFiniteError as error:
                raise _keep_step(error, workdir, config, epoch_steps, names) from None
            done = int(state.step)

        if patience.is_over:
            say(console, f"stopping early: {patience.describe(task.best_by)}")

    # Finish. A run that was asked to stop ends like an interrupted program.
    if done < last_step and not patience.is_over:
        raise KeyboardInterrupt


def _open_train_data(
    config: Config, given: Collection[str] | None, console: Console
) -> tuple[Config, Dataset]:
    """Return the dataset to train on, and the config with its classes and with chosen settings."""
    config = replace(config, data=with_listed_names(config.data))
    with timed(console, "reading the annotations to train on"):
        dataset = open_train_data(config.data)
    if given is not None:
        config, choices = choose_settings(config, dataset, given)
        for choice in choices:
            say(console, f"auto: {choice.key} = {choice.value}: {choice.reason}")
    return with_classes(config, dataset, config.data.train_name), dataset


def _open_eval_data(config: Config) -> Dataset:
    """Return the dataset to evaluate on, with the classes of the model."""
    name, dataset = config.data.eval_name, open_eval_data(config.data)
    remedy = "Use another --data.eval-split or --train.eval-every 0."
    check_split(name, dataset.pictures, remedy)
    return match_classes(config, dataset, name)


def _restore(
    workdir: Path, expected: SavedParts, ema_decay: float, console: Console
) -> tuple[Saved, TrainState]:
    """Return the newest checkpoint that is not damaged, and its state."""
    restored = restore_newest(workdir, *expected)
    check_same_step(workdir, restored.saved.step)
    check_same_weights(restored.variables)
    if is_main():
        set_aside_damaged(workdir, restored, partial(say, console))
    parts = (restored.variables, restored.opt_state)
    return restored.saved, state_of(restored.saved.step, parts, ema_decay)


def _new_state(
    variables: Variables, optimizer: optax.GradientTransformation, ema_decay: float
) -> TrainState:
    return with_average(initial_state(variables, optimizer), ema_decay)


def _keep_step(
    error: NotFiniteError,
    workdir: Path,
    config: Config,
    epoch_steps: int,
    names: Callable[[np.ndarray], list[str]],
) -> UserError:
    """Write the step of an error to the work directory, and return an error that names the file."""
    file = workdir / f"step_{error.step}.npz"
    if is_main():
        save_step(file, config, epoch_steps, names(np.asarray(error.batch.indices)), error)
    return UserError(f"{error} 'rpn-jax replay {file}' runs this step again.")


def _together(should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """Return a function that stops all processes after the same step."""
    vote = Vote()
    return lambda: vote(should_stop())


def _eval_steps(train: TrainConfig, epoch_steps: int) -> set[int]:
    """Return the numbers of finished steps after which an evaluation is due."""
    if train.eval_every == 0:
        return set()
    epochs = {*range(train.eval_every, train.epochs + 1, train.eval_every), train.epochs}
    return {epoch * epoch_steps for epoch in epochs}


def _start_variables(config: Config, console: Console) -> Variables:
    """Return the variables of a new run: random ones, or those of ``train.init_weights``."""
    if config.train.init_weights:
        with main_first():  # It can fill the cache folder.
            variables, summary = initial_variables(config, config.train.init_weights)
        say(console, summary)
        return variables
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


def _check_same_parts(workdir: Path, config: Config) -> None:
    """Refuse settings with which a run would need other arrays than those of its checkpoints."""
    stored = stored_config(workdir)
    if stored is None:
        return
    for key, theirs, ours in config_changes(stored, config):
        if key in DECIDES_WHAT_TRAINS:
            raise UserError(
                f"{key} = {ours!r}: is {theirs!r} in the run in {workdir}. A run cannot train "
                "other parameters later. Start a new run from its weights: choose another "
                f"--workdir and add --train.init-weights {workdir}"
            )
    ours, theirs = config.train.ema_decay, stored.train.ema_decay
    if (ours == 0) != (theirs == 0):
        raise UserError(
            f"train.ema_decay = {ours:g}: is {theirs:g} in the run in {workdir}. A moving average "
            "cannot be added to a run or left out later."
        )


def _picture_names(dataset: Dataset, indices: np.ndarray) -> list[str]:
    return [dataset.pictures[index].name for index in indices]


def _to_devices(batch: Batch) -> Batch:
    return finish_resize(split_batch(batch))
