"""The verbs of the command line as functions."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from rpn_jax.config import Config, load_config, replace
from rpn_jax.console import make_console, picture_progress, say
from rpn_jax.data.catalog import open_eval_data, open_train_data
from rpn_jax.data.check import (
    PARTS,
    Part,
    Problem,
    annotation_problems,
    class_problems,
    opening_problems,
    picture_problems,
    used_objects,
)
from rpn_jax.data.check_tables import print_check
from rpn_jax.data.classes import seen_and_unseen
from rpn_jax.data.dataset import Dataset, check_split, has_box_to_find
from rpn_jax.data.model_classes import match_classes
from rpn_jax.data.packed import Encoding, check_new_split, pack_split, split_names
from rpn_jax.data.plan import with_exact_padding
from rpn_jax.data.statistics import dataset_statistics
from rpn_jax.devices import describe_devices
from rpn_jax.errors import UserError
from rpn_jax.evaluation.tables import group_table
from rpn_jax.files import check_out_file, json_figures, make_folder, write_json
from rpn_jax.hosts.exchange import is_main, main_first
from rpn_jax.inference.drawings import save_detections, save_proposals
from rpn_jax.inference.results import PictureProposals
from rpn_jax.inference.results_file import (
    DETECTIONS_FILE,
    PROPOSALS_FILE,
    write_detections,
    write_results,
)
from rpn_jax.runtime import set_up_compiling
from rpn_jax.structures import Variables
from rpn_jax.training.agreement import check_same_inputs, check_same_weights
from rpn_jax.training.curves import draw_curves
from rpn_jax.training.doctor import check_installation
from rpn_jax.training.messages import print_oddities
from rpn_jax.training.metrics import METRICS_FILE
from rpn_jax.training.replay import replay_step
from rpn_jax.training.run import train_run
from rpn_jax.training.tasks import Figures, Results, Task, task_of
from rpn_jax.weights import torch as torch_weights
from rpn_jax.weights.checkpoints import last_saved
from rpn_jax.weights.folders import config_of_variables
from rpn_jax.weights.models import load_matching_weights

CURVES_FILE = "curves.png"
FIGURES_FILE = "figures.json"
DEMO_PICTURES = 8
"""Pictures that the demo draws."""
DEMO_BOXES = 12
"""Boxes that the demo draws on each picture."""


def train(
    config: Config,
    workdir: Path,
    resume: bool,
    given: Collection[str] | None = None,
    on_evaluation: Callable[[Results, Dataset], None] = lambda results, dataset: None,
    trackers: tuple[str, ...] = (),
) -> None:
    """Train, evaluate and save checkpoints in ``workdir``.

    With ``resume`` an interrupted run continues after its last checkpoint. On a CPU it ends with
    the same weights, bit for bit, as a run without interruption.

    With ``given``, the settings of the run are chosen from the dataset, except the fields with
    these dotted keys (`rpn_jax.training.recipe`).

    Args:
      config: config of the model, the data and the training.
      workdir: folder of the run.
      resume: continue the run in the folder.
      given: see above. None chooses nothing.
      on_evaluation: called after each evaluation with its results and its dataset.
      trackers: 'wandb' or 'mlflow', see `rpn_jax.training.trackers`.

    Raises:
      UserError: the data are invalid, the work directory contains another run, is in use or cannot
        be written, or the loss is not finite.
      KeyboardInterrupt: Ctrl-C or SIGTERM arrived. All finished steps are saved.
    """
    console = make_console(quiet=not is_main())
    set_up_compiling()
    say(console, describe_devices())
    train_run(config, task_of, workdir, resume, console, on_evaluation, given, trackers)


def evaluate(config: Config, weights: str, out: Path | None, exact_padding: bool) -> Figures:
    """Measure a model on ``data.eval_split`` and print the figures.

    They are the recall of the proposals and, with a second stage, the AP of the detections. With
    ``data.train_classes``, a second table compares the classes trained on with the others.

    Args:
      config: config of the model and the data.
      weights: weights of a model, as `rpn_jax.weights.models.load_model` loads them.
      out: JSON file (``.json``) for the figures, or a folder for the figures and the proposals or
        detections, or None.
      exact_padding: pad each picture only to a multiple of 32 pixels.

    Raises:
      UserError: the data are invalid, the weights belong to another model, or ``out`` cannot be
        written.
    """
    console = make_console(quiet=not is_main())
    set_up_compiling()
    say(console, describe_devices())
    split = config.data.eval_name
    dataset = open_eval_data(config.data)
    check_split(split, dataset.pictures, "Use another --data.eval-split.")
    print_oddities(split, dataset, console)
    with main_first():
        config, variables = load_matching_weights(config, weights)
    dataset = match_classes(config, dataset, split)
    check_same_inputs(config, [(split, dataset)])
    check_same_weights(variables)
    out = out if is_main() else None
    if out is not None:
        check_out_file(_figures_file(out))
    _print_other_scale(config, variables, console)
    if exact_padding:
        config = replace(config, data=with_exact_padding(dataset, config.data))
    task = task_of(config)
    results = task.predict(variables, dataset, console)
    figures = task.figures(dataset, results)
    console.print(task.table(figures))
    groups = _figures_by_group(task, config, dataset, results)
    if groups:
        console.print(group_table({"all": figures, **groups}, task.main_figures))
    if out is not None:
        record = {
            "config": config.name,
            "weights": str(weights),
            "split": split,
            "pictures": len(dataset.pictures),
            "exact_padding": exact_padding,
            "figures": json_figures(figures),
        }
        if groups:
            record["groups"] = {name: json_figures(values) for name, values in groups.items()}
        write_json(_figures_file(out), record)
        if _is_folder(out):
            _write_results(out, results, dataset)
        say(console, f"figures are in {out}")
    return figures


def _is_folder(out: Path) -> bool:
    return out.suffix != ".json"


def _figures_file(out: Path) -> Path:
    return out / FIGURES_FILE if _is_folder(out) else out


def _write_results(folder: Path, results: Results, dataset: Dataset) -> None:
    """Write the results that the figures were computed from."""
    if all(isinstance(result, PictureProposals) for result in results):
        write_results(folder / PROPOSALS_FILE, results)
        return
    write_results(folder / PROPOSALS_FILE, (proposals for _, proposals in results))
    detections = (detections for detections, _ in results)
    write_detections(folder / DETECTIONS_FILE, detections, dataset.category_ids)


def _print_other_scale(config: Config, variables: Variables, console: Console) -> None:
    """Print a line if the pictures are resized to another size than in training."""
    trained = config_of_variables(variables)
    if trained is not None and trained.data.scale != config.data.scale:
        ours, theirs = (" ".join(map(str, each.data.scale)) for each in (config, trained))
        say(
            console,
            f"note: --data.scale {ours}: the training used {theirs}. The figures can be lower.",
        )


def check_data(config: Config, out: Path | None) -> int:
    """Check all data that a config names, and print the problems and what the data contain.

    Args:
      config: config of the model and the data.
      out: JSON file for all problems and counts, or None.

    Returns:
      0 without problems, 1 after warnings, 2 if training or evaluation would stop.

    Raises:
      UserError: ``out`` cannot be written.
    """
    console = make_console()
    if out is not None:
        check_out_file(out)
    problems: list[Problem] = []
    statistics: dict[Part, dict[str, Any]] = {}
    datasets: dict[Part, Dataset] = {}
    for part in PARTS:
        dataset, found = opening_problems(config.data, part)
        problems += found
        if dataset is None:
            continue
        datasets[part] = dataset
        used, found = used_objects(config.data, part, dataset)
        problems += found
        problems += annotation_problems(config.data, part, dataset)
        with picture_progress(console, f"checking {part}", len(dataset.pictures)) as advance:
            problems += picture_problems(config.data, part, dataset, advance)
        statistics[part] = dataset_statistics(used, config.data, config.model.rpn.anchors)
    if len(datasets) == len(PARTS):
        problems += class_problems(config, datasets["train"], datasets["eval"])
    print_check(console, problems, statistics)
    if out is not None:
        record = {
            "config": config.name,
            "problems": [asdict(problem) for problem in problems],
            "statistics": statistics,
        }
        write_json(out, record)
        say(console, f"all problems and counts are in {out}")
    levels = {problem.level for problem in problems}
    return 2 if "error" in levels else int("warning" in levels)


def pack(config: Config, out: Path, encoding: Encoding) -> None:
    """Write the pictures that a config names into a packed dataset.

    Args:
      config: config of the data. Pictures are resized to ``data.scale``.
      out: folder to write to.
      encoding: encoding of the pixels.

    Raises:
      UserError: the data are invalid, a split is already packed, or ``out`` cannot be written.
    """
    console = make_console()
    make_folder(out)
    data = config.data
    train_split, eval_split = split_names(data)
    for split in (train_split, eval_split):
        check_new_split(out, split)
    parts = {train_split: open_train_data(data), eval_split: open_eval_data(data)}
    for split, dataset in parts.items():
        with picture_progress(console, f"packing {split}", len(dataset.pictures)) as advance:
            count = pack_split(dataset, data, out, split, encoding, advance)
        say(console, f"{count} pictures of '{split}' are in {out}")
    say(
        console,
        f"use them with --data.dataset packed --data.root {out} --data.train-split {train_split} "
        f"--data.eval-split {eval_split}",
    )


def convert(source: str, out: Path, config_name: str | None) -> None:
    """Convert a PyTorch file to a folder of weights, and print a report about its keys.

    Args:
      source: a path, an https URL, or a name such as ``torchvision://resnet50``.
      out: folder to write. It must not exist yet.
      config_name: name or path of the config that the weights belong to. None detects it.

    Raises:
      UserError: the source cannot be read, is refused or does not match the config, or ``out``
        exists.
    """
    console = make_console()
    report = torch_weights.convert(source, out, config_name)
    torch_weights.print_report(report, console)
    say(console, f"weights are in {out}")


def convert_to_torch(weights: Path, file: Path) -> None:
    """Write weights as a PyTorch file with the original's key names.

    Raises:
      UserError: the weights cannot be read, or the file exists or cannot be written.
    """
    torch_weights.to_torch(weights, file)
    say(make_console(), f"weights are in {file}")


def replay(file: Path) -> None:
    """Run a training step again that a run kept because its loss was not finite.

    Raises:
      UserError: the file cannot be read.
    """
    console = make_console()
    set_up_compiling()
    replay_step(file, console)


def doctor() -> int:
    """Check the installation. See `check_installation`."""
    set_up_compiling()
    return check_installation(make_console())


def demo(workdir: Path, detector: bool) -> None:
    """Train a small model on the built-in pictures, evaluate it, and draw its boxes.

    Args:
      workdir: folder for the run and the drawn pictures.
      detector: train a Faster R-CNN, which names the shapes, instead of an RPN.

    Raises:
      UserError: the work directory contains a run or cannot be written.
      KeyboardInterrupt: Ctrl-C or SIGTERM arrived. All finished steps are saved.
    """
    console = make_console()
    config = load_config("faster-rcnn_demo" if detector else "rpn_demo")
    if last_saved(workdir) is not None:
        raise UserError(
            f"--workdir {workdir}: already contains a run. Remove it, or choose another --workdir."
        )
    folder = workdir / "pictures"
    train(config, workdir, resume=False, on_evaluation=partial(_draw_first, folder, console))
    make_folder(folder)
    dataset = open_eval_data(config.data)
    config, variables = load_matching_weights(config, workdir)
    results = task_of(config).predict(variables, dataset, console)
    _draw(folder, console, results[:DEMO_PICTURES], dataset)
    draw_curves(workdir / METRICS_FILE, task_of(config).curves, workdir / CURVES_FILE)
    say(console, f"learning curves are in {workdir / CURVES_FILE}")


def _figures_by_group(
    task: Task, config: Config, dataset: Dataset, results: Results
) -> dict[str, Figures]:
    """Return the figures of the classes trained on, and of the others.

    A group without any box has no figures. Without ``data.train_classes`` there are no groups.
    """
    if not config.data.train_classes:
        return {}
    groups = seen_and_unseen(dataset, config.data.train_classes)
    return {
        name: task.figures(group, results) if has_box_to_find(group.pictures) else {}
        for name, group in groups.items()
    }


def _draw_first(folder: Path, console: Console, results: Results, dataset: Dataset) -> None:
    """Draw the first picture with its results, unless the folder of the drawings exists."""
    if folder.exists():
        return
    make_folder(folder)
    _draw(folder, console, results[:1], dataset)


def _draw(folder: Path, console: Console, results: Results, dataset: Dataset) -> None:
    """Draw the first pictures of a dataset with their results and the ground truth."""
    if isinstance(results[0], PictureProposals):
        save_proposals(
            console,
            folder,
            dataset,
            enumerate(results),
            len(results),
            DEMO_BOXES,
            with_truth=True,
        )
    else:
        save_detections(
            console,
            folder,
            dataset,
            ((index, detections) for index, (detections, _) in enumerate(results)),
            len(results),
            dataset.class_names,
            DEMO_BOXES,
            with_truth=True,
        )
