"""A training run of an RPN: where config, data, model, losses, training and evaluation meet."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from rpn_jax.config import Config, config_changes, load_config, save_config
from rpn_jax.data.catalog import open_dataset
from rpn_jax.data.dataset import Dataset
from rpn_jax.data.on_device import finish_resize
from rpn_jax.data.pipeline import batch_shapes, prefetch, steps_per_epoch, train_batches
from rpn_jax.errors import UserError
from rpn_jax.evaluation.recall import PROPOSAL_COUNTS, check_split, recall_table
from rpn_jax.evaluation.recall import evaluate as evaluate_recall
from rpn_jax.files import write_json
from rpn_jax.inference.proposer import ProposeFunction, make_propose_function, propose_with_progress
from rpn_jax.models import init_variables, variable_shapes
from rpn_jax.runtime import environment
from rpn_jax.training.lock import only_run
from rpn_jax.training.log import RunLog
from rpn_jax.training.objectives import rpn_loss_function
from rpn_jax.training.optim import learning_rate_schedule, make_optimizer, trainable_parameters
from rpn_jax.training.step import (
    TrainState,
    check_divisible,
    compile_steps,
    initial_state,
    make_step,
    replicate,
    run_steps,
    split_batch,
)
from rpn_jax.weights.checkpoints import Checkpoints, Saved, last_saved, restore_state
from rpn_jax.weights.folders import CONFIG_FILE, check_same_model

if TYPE_CHECKING:
    from rpn_jax.structures import Batch, Variables

BEST_BY = "AR@1000"
"""Figure that selects the best checkpoint."""

ENVIRONMENT_FILE = "environment.json"


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step of a run to its last."""

    config: Config
    workdir: Path
    console: Console
    train_data: Dataset
    eval_data: Dataset | None
    epoch_steps: int
    optimizer: optax.GradientTransformation
    step_function: jax.stages.Wrapped
    propose_function: ProposeFunction

    @property
    def last_step(self) -> int:
        """Steps at the end of training."""
        return self.epoch_steps * self.config.train.epochs


def train_run(config: Config, workdir: Path, resume: bool, console: Console) -> None:
    """Train, evaluate and keep checkpoints in ``workdir``; `rpn_jax.commands.train`."""
    check_divisible("data.batch_size", config.data.batch_size)
    run = _prepare(config, workdir, console)
    # Read before the lock makes the folder: weights that cannot be had leave nothing behind.
    start = _starting_variables(config) if last_saved(workdir) is None else None
    with only_run(workdir):
        last = last_saved(workdir)
        # What is wrong with an earlier part is told before anything of it is changed.
        state = replicate(_first_state(run, last, resume, start))
        del start  # or it would take memory beside the state
        done, failure = _train(run, last, state)
    if done:
        console.print(
            f"results are in {workdir}: checkpoints/, metrics.jsonl and event files", soft_wrap=True
        )
    if done < run.last_step:
        remedy = "; --resume goes on from there" if done else ""
        console.print(f"stopped after step {done} of {run.last_step}{remedy}")
        raise failure or KeyboardInterrupt


def _train(run: Run, last: Saved | None, state: TrainState) -> tuple[int, Exception | None]:
    """The steps done, and why the next batch could not be had."""
    done = int(state.step)
    with (
        Checkpoints(
            run.workdir, run.config.train.keep_last, run.epoch_steps, BEST_BY
        ) as checkpoints,
        _log(run, done) as log,
        _signals(run.console) as should_stop,
    ):
        _record(run)
        _introduce(run, done)
        if last is not None and not last.evaluated and _evaluates_after(run, done):
            checkpoints.add_metrics(done, _evaluate(run, state, log))
        if done == run.last_step:
            return done, None
        return _train_epochs(run, state, checkpoints, log, should_stop)


def _prepare(config: Config, workdir: Path, console: Console) -> Run:
    train_data = open_dataset(config.data, config.data.train_split)
    epoch_steps = steps_per_epoch(train_data, config.data)
    schedule = learning_rate_schedule(config.optim, epoch_steps, config.data.batch_size)
    trainable = trainable_parameters(variable_shapes(config)["params"], config.model.backbone)
    optimizer = make_optimizer(config.optim, schedule, trainable)
    loss_function = rpn_loss_function(config)
    return Run(
        config=config,
        workdir=workdir,
        console=console,
        train_data=train_data,
        eval_data=_evaluation_data(config) if config.train.eval_every > 0 else None,
        epoch_steps=epoch_steps,
        optimizer=optimizer,
        step_function=make_step(loss_function, optimizer, schedule, config.train.seed),
        propose_function=make_propose_function(config),
    )


def _evaluation_data(config: Config) -> Dataset:
    split = config.data.eval_split
    dataset = open_dataset(config.data, split)
    remedy = "use another --data.eval-split or --train.eval-every 0"
    check_split(split, dataset.annotations, remedy)
    return dataset


def _starting_variables(config: Config) -> Variables:
    if not config.train.init_weights:
        return init_variables(config, config.train.seed)
    from rpn_jax.weights.torch import initial_variables

    return initial_variables(config, config.train.init_weights)


def _first_state(run: Run, last: Saved | None, resume: bool, start: Variables | None) -> TrainState:
    """The last state saved, with ``resume``; where nothing was saved a fresh one of ``start``."""
    if last is None:
        if resume:
            run.console.print(
                f"work directory {run.workdir}: holds no checkpoint; training begins at step 1",
                soft_wrap=True,
            )
        # ``start`` is None only where a run had saved something that is gone by now.
        return initial_state(start or _starting_variables(run.config), run.optimizer)
    if not resume:
        raise UserError(
            f"work directory {run.workdir}: holds a run up to step {last.step}; "
            "pass --resume to go on, or choose another --workdir"
        )
    check_same_model(run.config, run.workdir)
    _check_same_epochs(run, last)
    shapes = jax.eval_shape(lambda: initial_state(init_variables(run.config), run.optimizer))
    arrays = restore_state(run.workdir, last.step, shapes.variables, shapes.opt_state)
    return TrainState(jnp.asarray(last.step, jnp.int32), *arrays)


def _check_same_epochs(run: Run, last: Saved) -> None:
    """Refuse to go on where the steps that were done would count as other epochs."""
    if run.epoch_steps != last.epoch_steps:
        raise UserError(
            f"work directory {run.workdir}: an epoch of its run has {last.epoch_steps} steps, and "
            f"{run.epoch_steps} with data.batch_size = {run.config.data.batch_size} and the "
            "pictures of this config; go on with those it had, or choose another --workdir"
        )
    begun = -(-last.step // last.epoch_steps)
    if run.config.train.epochs < begun:
        raise UserError(
            f"train.epochs = {run.config.train.epochs}: must be {begun} or more, the epochs that "
            f"the run in {run.workdir} has begun or done"
        )


def _log(run: Run, done: int) -> RunLog:
    config = run.config
    return RunLog(
        run.workdir,
        run.console,
        config.data.batch_size,
        run.epoch_steps,
        done,
        run.last_step,
        config.train.log_every,
    )


def _record(run: Run) -> None:
    """Keep what decides a run's figures beside them; tell what differs from an earlier part."""
    path = run.workdir / CONFIG_FILE
    if path.exists():
        for key, old, new in config_changes(load_config(path), run.config):
            run.console.print(f"{key} was {old} in this run so far, and is {new} from here on")
    save_config(run.config, path)
    write_json(run.workdir / ENVIRONMENT_FILE, environment())


def _introduce(run: Run, done: int) -> None:
    devices = jax.local_devices()
    pictures = run.train_data.pictures
    run.console.print(
        f"training {run.config.name} on {len(devices)} x {devices[0].device_kind}: "
        f"{len(pictures)} pictures with {sum(len(p.boxes_xyxy) for p in pictures)} boxes in "
        f"'{run.config.data.train_split}', {run.config.train.epochs} epochs of {run.epoch_steps} "
        f"steps of {run.config.data.batch_size} pictures",
        soft_wrap=True,
    )
    backbone = run.config.model.backbone
    frozen = backbone.frozen_stages >= 0 or backbone.norm == "frozen"
    if done:
        run.console.print(f"going on after step {done}")
    elif frozen and not run.config.train.init_weights:
        from rpn_jax.weights.torch import published_backbone

        published = published_backbone(backbone)
        source = f"{published}, or a file," if published else "with a file"
        run.console.print(
            "note: the backbone starts from random weights, and what is frozen of it stays so; "
            f"--train.init-weights {source} starts from a trained one",
            soft_wrap=True,
        )


def _train_epochs(
    run: Run,
    state: TrainState,
    checkpoints: Checkpoints,
    log: RunLog,
    should_stop: Callable[[], bool],
) -> tuple[int, Exception | None]:
    """Train to the end, or until asked to stop or out of batches, saving after each epoch.

    The steps done, and why the next batch could not be had.
    """
    data, seed = run.config.data, run.config.train.seed
    compiled = compile_steps(run.step_function, state, batch_shapes(run.train_data, data), log)
    done = int(state.step)
    batches = _Batches(prefetch(train_batches(run.train_data, data, seed, done), _place))
    while done < run.last_step and batches.failure is None and not should_stop():
        log.restart_clock()
        steps = run.epoch_steps - done % run.epoch_steps
        state = run_steps(
            compiled, state, batches, done, steps, log, _names_in(run.train_data), should_stop
        )
        if int(state.step) > done:
            _save(run, state, checkpoints, log)
        done = int(state.step)
    return done, batches.failure


class _Batches:
    """Batches up to the first that cannot be had; ``failure`` then says why.

    So the steps before it end as those of a run that was asked to stop.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        try:
            return next(self._batches)
        except Exception as error:
            self.failure = error
            raise StopIteration from None


def _save(run: Run, state: TrainState, checkpoints: Checkpoints, log: RunLog) -> None:
    """Save a state, with its figures where an evaluation is due."""
    done, figures = int(state.step), None
    if _evaluates_after(run, done):
        try:
            figures = _evaluate(run, state, log)
        except BaseException:
            # Whatever stops the evaluation, the epoch is not lost.
            checkpoints.save(done, state.variables, state.opt_state, None)
            raise
    checkpoints.save(done, state.variables, state.opt_state, figures)


def _names_in(dataset: Dataset) -> Callable[[np.ndarray], list[str]]:
    return lambda indices: [dataset.pictures[index].name for index in indices]


def _evaluates_after(run: Run, done: int) -> bool:
    epoch, steps_more = divmod(done, run.epoch_steps)
    if run.eval_data is None or steps_more:
        return False
    return epoch % run.config.train.eval_every == 0 or epoch == run.config.train.epochs


def _place(batch: Batch) -> Batch:
    return finish_resize(split_batch(batch))


def _evaluate(run: Run, state: TrainState, log: RunLog) -> dict[str, float]:
    """Measure a state at the end of an epoch, keep the figures and show them."""
    assert run.eval_data is not None
    results = propose_with_progress(
        run.propose_function, state.variables, run.eval_data, run.config, run.console
    )
    figures = evaluate_recall(run.eval_data.annotations, results)
    log.evaluated(int(state.step), figures)
    _show(run, int(state.step) // run.epoch_steps, figures)
    return figures


def _show(run: Run, epoch: int, figures: dict[str, float]) -> None:
    """One line after an epoch, the whole table after the last."""
    if epoch == run.config.train.epochs:
        run.console.print(recall_table(figures))
        return
    recalls = ", ".join(f"AR@{count} {figures[f'AR@{count}']:.3f}" for count in PROPOSAL_COUNTS)
    run.console.print(f"epoch {epoch}: {recalls} (proposal)")


@contextmanager
def _signals(console: Console) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a polite stop; a second one acts at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()
        console.print("stopping after this step, or this evaluation; once more stops at once")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(received)
    finally:
        restore()
