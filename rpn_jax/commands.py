"""The verbs of the command line as functions: train, evaluate, propose, demo.

Here, and only here, the parts meet: config, data, model, losses, training, evaluation.
"""

from __future__ import annotations

import json
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import flax
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import rpn_jax
from rpn_jax.checkpoints import Checkpoints, check_variables, load_variables
from rpn_jax.compilation_cache import use_compilation_cache
from rpn_jax.config import Config, config_to_json, load_config
from rpn_jax.data.dataset import Dataset, open_dataset
from rpn_jax.data.files import PictureFiles, find_pictures
from rpn_jax.data.pipeline import (
    batch_shapes,
    prefetch,
    steps_per_epoch,
    train_batches,
)
from rpn_jax.errors import UserError
from rpn_jax.evaluation import (
    PROPOSAL_COUNTS,
    PictureProposals,
    json_figures,
    recall_table,
    write_results,
)
from rpn_jax.evaluation import evaluate as evaluate_recall
from rpn_jax.losses import rpn_loss
from rpn_jax.models import RPN, init_variables, variable_shapes
from rpn_jax.ops.pixels import normalize_images
from rpn_jax.optim import learning_rate_schedule, make_optimizer, trainable_parameters
from rpn_jax.proposer import ProposeFunction, make_propose_function, propose_dataset
from rpn_jax.run_log import RunLog
from rpn_jax.structures import Batch
from rpn_jax.training import (
    DEVICE_AXIS,
    LossFunction,
    TrainState,
    compile_steps,
    initial_state,
    make_step,
    replicate,
    run_steps,
    split_batch,
)
from rpn_jax.visualize import draw_boxes, save_picture

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
PROPOSALS_FILE = "proposals.json"
PICTURES_FILE = "pictures.json"
PACKAGES = (rpn_jax, jax, jaxlib, flax, optax, np)
DEMO_PICTURES = 8
DEMO_BOXES = 20


def rpn_loss_function(config: Config) -> LossFunction:
    """The loss of an RPN on a device's batch, for `rpn_jax.training`."""
    model = RPN(config.model, axis_name=DEVICE_AXIS)

    def loss_function(
        variables: dict[str, Any], batch: Batch, rng: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        images = normalize_images(batch.images, batch.image_sizes, config.pixels)
        outputs, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        terms = rpn_loss(
            config,
            outputs,
            batch.boxes_xyxy,
            batch.box_mask,
            batch.image_sizes,
            rng,
            axis_name=DEVICE_AXIS,
        )
        return terms, {**variables, **updates}

    return loss_function


def train(config: Config, workdir: Path, resume: bool, auto_scale_lr: bool) -> None:
    """Train, evaluate and keep checkpoints in ``workdir``.

    A run that was interrupted goes on with ``resume`` where it stopped and ends with the same
    weights, bit for bit, as one that never was.

    Raises:
      UserError: bad data, a work directory that holds another run or cannot be written, or a loss
        that is not finite.
    """
    console = Console()
    use_compilation_cache()
    train_data = open_dataset(config.data, config.data.train_split)
    eval_data = _eval_data(config) if config.train.eval_every else None
    epoch_steps = steps_per_epoch(train_data, config.data)
    last_step = epoch_steps * config.train.epochs
    schedule = learning_rate_schedule(
        config.optim, epoch_steps, config.data.batch_size, auto_scale_lr
    )
    variables = _starting_variables(config)
    trainable = trainable_parameters(variables["params"], config.model.backbone)
    optimizer = make_optimizer(config.optim, schedule, trainable)
    step_function = make_step(rpn_loss_function(config), optimizer, schedule, config.train.seed)
    propose_function = make_propose_function(config)

    with Checkpoints(workdir, config.train.keep_last) as checkpoints, _signals() as should_stop:
        state = _first_state(initial_state(variables, optimizer), checkpoints, resume)
        done = int(state.step)
        state = replicate(state)
        _record_run(config, workdir)
        _introduce_run(console, config, workdir, len(train_data.pictures), epoch_steps, done)
        log = RunLog(
            workdir,
            console,
            config.data.batch_size,
            epoch_steps,
            done,
            last_step,
            config.train.log_every,
        )
        with log:
            shapes = batch_shapes(train_data, config.data)
            compiled = compile_steps(step_function, state, shapes, log)
            batches = prefetch(
                train_batches(train_data, config.data, config.train.seed, done), split_batch
            )
            while done < last_step and not should_stop():
                log.restart_clock()
                epoch = done // epoch_steps + 1
                state = run_steps(
                    compiled,
                    state,
                    batches,
                    done,
                    epoch * epoch_steps - done,
                    log,
                    lambda indices: [train_data.pictures[index].name for index in indices],
                    should_stop,
                )
                done = int(state.step)
                figures = None
                due = epoch % max(config.train.eval_every, 1) == 0 or done == last_step
                if eval_data is not None and due and done == epoch * epoch_steps:
                    results = _propose_all(
                        console, config, propose_function, state.variables, eval_data
                    )
                    figures = evaluate_recall(eval_data.annotations, results)
                    log.evaluated(done, figures)
                    console.print(_summary(epoch, figures))
                checkpoints.save(done, state.variables, state.opt_state, figures)
    if done < last_step:
        console.print(f"stopped after step {done} of {last_step}; --resume goes on from there")
    elif figures is not None:
        console.print(recall_table(figures))
    console.print(f"results are in {workdir}: checkpoints/, metrics.jsonl and event files")


def evaluate(config: Config, weights: Path, out: Path | None) -> dict[str, float]:
    """Measure the recall of proposals on ``data.eval_split``, print it, and write it to ``out``.

    Raises:
      UserError: bad data, weights of another model, or an ``out`` that cannot be written.
    """
    console = Console()
    use_compilation_cache()
    if out is not None:
        _make_folder(out.parent)
    dataset = _eval_data(config)
    variables = _weights_of(config, weights)
    results = _propose_all(console, config, make_propose_function(config), variables, dataset)
    figures = evaluate_recall(dataset.annotations, results)
    console.print(recall_table(figures))
    if out is not None:
        record = {
            "config": config.name,
            "weights": str(weights),
            "split": config.data.eval_split,
            "pictures": len(dataset.pictures),
            "figures": json_figures(figures),
        }
        out.write_text(json.dumps(record, indent=2) + "\n")
        console.print(f"figures written to {out}")
    return figures


def propose(config: Config, weights: Path, pictures: list[str], out: Path, draw: int) -> None:
    """Write proposals for picture files: ``OUT/proposals.json``, and drawn pictures.

    Args:
      config: the network's config.
      weights: its weights.
      pictures: paths, folders or globs.
      out: folder to write to.
      draw: boxes to draw on a copy of each picture; 0 draws none.

    Raises:
      UserError: a picture that is missing or is none, weights of another model, or an ``out``
        that cannot be written.
    """
    console = Console()
    use_compilation_cache()
    dataset = PictureFiles(find_pictures(pictures))
    variables = _weights_of(config, weights)
    _make_folder(out)
    results = _propose_all(console, config, make_propose_function(config), variables, dataset)
    write_results(out / PROPOSALS_FILE, results)
    (out / PICTURES_FILE).write_text(json.dumps({"images": dataset.annotations["images"]}) + "\n")
    console.print(f"proposals in {out / PROPOSALS_FILE}, their pictures in {out / PICTURES_FILE}")
    if draw:
        _draw(console, out, dataset, results, draw, with_truth=False)


def demo(workdir: Path) -> None:
    """Train a small model on the built-in pictures, evaluate it, and draw what it proposes."""
    console = Console()
    config = load_config("rpn_demo")
    train(config, workdir, resume=False, auto_scale_lr=False)
    dataset = _eval_data(config)
    variables = _weights_of(config, workdir)
    results = _propose_all(console, config, make_propose_function(config), variables, dataset)
    folder = workdir / "pictures"
    _make_folder(folder)
    _draw(console, folder, dataset, results[:DEMO_PICTURES], DEMO_BOXES, with_truth=True)


def _eval_data(config: Config) -> Dataset:
    return open_dataset(config.data, config.data.eval_split)


def _weights_of(config: Config, folder: Path) -> dict[str, Any]:
    variables = load_variables(folder)
    check_variables(variable_shapes(config), variables, folder)
    return variables


def _starting_variables(config: Config) -> dict[str, Any]:
    if config.train.init_weights:
        return _weights_of(config, Path(config.train.init_weights))
    return init_variables(config, config.train.seed)


def _first_state(fresh: TrainState, checkpoints: Checkpoints, resume: bool) -> TrainState:
    """The state to go on from: ``fresh``, or with ``resume`` the last one saved, if any."""
    if checkpoints.latest_step() is not None and not resume:
        raise UserError(
            f"work directory {checkpoints.folder.parent}: holds a run up to step "
            f"{checkpoints.latest_step()}; pass --resume to go on, or choose another --workdir"
        )
    restored = checkpoints.restore_latest(fresh.variables, fresh.opt_state)
    if restored is None:
        return fresh
    step, variables, opt_state = restored
    return TrainState(jnp.asarray(step, jnp.int32), variables, opt_state)


def _record_run(config: Config, workdir: Path) -> None:
    """Keep what decides the run's figures beside them."""
    config_to_json(config, workdir / CONFIG_FILE)
    environment = {
        "command": sys.argv,
        "python": platform.python_version(),
        "devices": [device.device_kind for device in jax.local_devices()],
        "packages": {package.__name__: package.__version__ for package in PACKAGES},
    }
    (workdir / ENVIRONMENT_FILE).write_text(json.dumps(environment, indent=2) + "\n")


def _introduce_run(
    console: Console, config: Config, workdir: Path, pictures: int, epoch_steps: int, done: int
) -> None:
    devices = jax.local_devices()
    console.print(
        f"training {config.name} on {len(devices)} x {devices[0].device_kind}: {pictures} pictures "
        f"in '{config.data.train_split}', {epoch_steps} steps an epoch of "
        f"{config.data.batch_size} pictures, {config.train.epochs} epochs, into {workdir}"
    )
    if done:
        console.print(f"going on after step {done}")


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a polite stop; a second one acts at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

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


def _propose_all(
    console: Console,
    config: Config,
    propose_function: ProposeFunction,
    variables: dict[str, Any],
    dataset: Dataset,
) -> list[PictureProposals]:
    """Proposals of every picture in the dataset's order, behind a progress bar."""
    with Progress(
        TextColumn("proposing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("pictures"),
        TimeElapsedColumn(),
        TextColumn("<"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=len(dataset.pictures))
        results = list(
            propose_dataset(
                propose_function,
                variables,
                dataset,
                config,
                on_pictures=lambda count: progress.advance(task, count),
            )
        )
    position = {picture.image_id: index for index, picture in enumerate(dataset.pictures)}
    return sorted(results, key=lambda result: position[result.image_id])


def _summary(epoch: int, figures: dict[str, float]) -> str:
    shown = ", ".join(f"AR@{count} {figures[f'AR@{count}']:.3f}" for count in PROPOSAL_COUNTS)
    return f"epoch {epoch}: {shown} (proposal)"


def _draw(
    console: Console,
    folder: Path,
    dataset: Dataset,
    results: list[PictureProposals],
    best: int,
    with_truth: bool,
) -> None:
    position = {picture.image_id: index for index, picture in enumerate(dataset.pictures)}
    for result in results:
        index = position[result.image_id]
        picture = dataset.pictures[index]
        drawn = draw_boxes(
            dataset.load_image(index),
            result.boxes_xyxy[:best],
            result.scores[:best],
            picture.boxes_xyxy if with_truth else None,
        )
        save_picture(folder / f"{result.image_id}_{Path(picture.name).stem}.png", drawn)
    console.print(f"{len(results)} pictures with their {best} best proposals are in {folder}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {folder}: cannot be made ({error.strerror})") from None
