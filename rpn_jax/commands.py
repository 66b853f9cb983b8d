"""The verbs of the command line as functions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from rpn_jax.config import Config, load_config, replace
from rpn_jax.console import make_console, picture_progress
from rpn_jax.data.catalog import open_eval_data
from rpn_jax.data.check import (
    PARTS,
    Part,
    Problem,
    annotation_problems,
    opening_problems,
    picture_problems,
)
from rpn_jax.data.check_tables import print_check
from rpn_jax.data.classes import seen_and_unseen
from rpn_jax.data.coco_file import coco_images
from rpn_jax.data.dataset import Dataset, Picture, describe_oddities, training_boxes
from rpn_jax.data.files import PictureFiles, find_pictures
from rpn_jax.data.model_classes import match_classes
from rpn_jax.data.plan import with_exact_padding
from rpn_jax.data.statistics import dataset_statistics
from rpn_jax.devices import describe_devices
from rpn_jax.errors import UserError
from rpn_jax.evaluation.checks import check_split, has_box_to_find
from rpn_jax.evaluation.tables import group_table
from rpn_jax.files import check_out_file, json_figures, make_folder, write_json
from rpn_jax.hosts.exchange import is_main, main_first
from rpn_jax.inference.detector import detect_with_progress, make_detect_function, second_stage
from rpn_jax.inference.draw import draw_boxes, draw_detections, save_picture
from rpn_jax.inference.proposer import make_propose_function, propose_with_progress
from rpn_jax.inference.results import (
    PictureDetections,
    PictureProposals,
    write_detections,
    write_results,
)
from rpn_jax.runtime import set_up_compiling
from rpn_jax.structures import Variables
from rpn_jax.training.curves import draw_curves
from rpn_jax.training.metrics import METRICS_FILE
from rpn_jax.training.run import train_run
from rpn_jax.training.tasks import Figures, Results, Task, task_of
from rpn_jax.weights import torch as torch_weights
from rpn_jax.weights.checkpoints import last_saved
from rpn_jax.weights.models import load_matching_weights

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from numpy import ndarray

    Pixels = UInt8[ndarray, "H W 3"]

AnyResult = TypeVar("AnyResult", PictureProposals, PictureDetections)

PROPOSALS_FILE = "proposals.json"
DETECTIONS_FILE = "detections.json"
PICTURES_FILE = "pictures.json"
CURVES_FILE = "curves.png"
DEMO_PICTURES = 8
"""Pictures that the demo draws."""
DEMO_BOXES = 12
"""Boxes that the demo draws on each picture."""


def train(
    config: Config, workdir: Path, resume: bool, given: Collection[str] | None = None
) -> None:
    """Train, evaluate and save checkpoints in ``workdir``.

    With ``resume`` an interrupted run continues after its last checkpoint. On a CPU it ends with
    the same weights, bit for bit, as a run without interruption.

    With ``given``, the settings of the run are chosen from the dataset, except the fields with
    these dotted keys (`rpn_jax.training.recipe`).

    Raises:
      UserError: the data are invalid, the work directory contains another run, is in use or cannot
        be written, or the loss is not finite.
      KeyboardInterrupt: Ctrl-C or SIGTERM arrived. All finished steps are saved.
    """
    console = make_console(quiet=not is_main())
    set_up_compiling()
    console.print(describe_devices(), soft_wrap=True)
    train_run(config, task_of, workdir, resume, console, given)


def evaluate(config: Config, weights: str, out: Path | None, exact_padding: bool) -> Figures:
    """Measure a model on ``data.eval_split`` and print the figures.

    They are the recall of the proposals and, with a second stage, the AP of the detections. With
    ``data.train_classes``, a second table compares the classes trained on with the others.

    Args:
      config: config of the model and the data.
      weights: weights of a model, as `rpn_jax.weights.models.load_model` loads them.
      out: JSON file for the figures, or None.
      exact_padding: pad each picture only to a multiple of 32 pixels.

    Raises:
      UserError: the data are invalid, the weights belong to another model, or ``out`` cannot be
        written.
    """
    console = make_console(quiet=not is_main())
    set_up_compiling()
    console.print(describe_devices(), soft_wrap=True)
    split = config.data.eval_name
    dataset = open_eval_data(config.data)
    check_split(split, dataset.pictures, "Use another --data.eval-split.")
    oddities = describe_oddities(split, dataset.pictures)
    if oddities:
        console.print(oddities, soft_wrap=True)
    with main_first():
        config, variables = load_matching_weights(config, weights)
    dataset = match_classes(config, dataset, split)
    out = out if is_main() else None
    if out is not None:
        check_out_file(out)
    if exact_padding:
        config = _with_exact_padding(config, dataset)
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
        write_json(out, record)
        console.print(f"figures are in {out}", soft_wrap=True)
    return figures


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
    for part in PARTS:
        dataset, found = opening_problems(config.data, part)
        problems += found
        if dataset is None:
            continue
        problems += annotation_problems(config.data, part, dataset)
        with picture_progress(console, f"checking {part}", len(dataset.pictures)) as advance:
            problems += picture_problems(config.data, part, dataset, advance)
        statistics[part] = dataset_statistics(dataset, config.data, config.model.rpn.anchors)
    print_check(console, problems, statistics)
    if out is not None:
        record = {
            "config": config.name,
            "problems": [asdict(problem) for problem in problems],
            "statistics": statistics,
        }
        write_json(out, record)
        console.print(f"all problems and counts are in {out}", soft_wrap=True)
    levels = {problem.level for problem in problems}
    return 2 if "error" in levels else int("warning" in levels)


def propose(
    config: Config,
    weights: str,
    pictures: list[str],
    out: Path,
    draw: int,
    min_score: float,
    exact_padding: bool,
) -> None:
    """Write the proposals of pictures to ``OUT/proposals.json``, and draw them.

    The header of every picture is checked before the first one is processed. The proposals are
    written after all pictures are processed.

    Args:
      config: config of the model. Its data section sets the picture sizes and batches.
      weights: weights of a model, as `rpn_jax.weights.models.load_model` loads them.
      pictures: paths of pictures, folders or globs. An empty list selects ``data.eval_split``.
      out: folder to write to.
      draw: number of proposals to draw on a copy of each picture. 0 draws nothing.
      min_score: only proposals with a higher score are kept.
      exact_padding: pad each picture only to a multiple of 32 pixels.

    Raises:
      UserError: a picture is missing or is not a picture, the weights belong to another model, or
        ``out`` cannot be written.
    """
    console = make_console()
    set_up_compiling()
    console.print(describe_devices(), soft_wrap=True)
    dataset = _open_pictures(config, pictures)
    config, variables = load_matching_weights(config, weights)
    config = _prepare_out(config, dataset, out, PROPOSALS_FILE, exact_padding)
    results = [
        result.above(min_score) for result in _propose_all(config, variables, dataset, console)
    ]
    write_results(out / PROPOSALS_FILE, results)
    _write_picture_list(console, dataset, out, PROPOSALS_FILE)
    if draw:
        _draw_proposals(console, out, dataset, results, draw, with_truth=False)


def detect(
    config: Config,
    weights: str,
    pictures: list[str],
    out: Path,
    draw: int,
    exact_padding: bool,
) -> None:
    """Write the named boxes of pictures to ``OUT/detections.json``, and draw them.

    The file has the category ids of the weights. Otherwise as `propose`.

    Args:
      config: config of the model. ``roi_detections`` limits the scores and the number of boxes.
      weights, pictures, out, exact_padding: as in `propose`.
      draw: number of boxes to draw on a copy of each picture. 0 draws nothing.

    Raises:
      UserError: the model has no second stage, or a reason of `propose`.
    """
    console = make_console()
    set_up_compiling()
    second_stage(config)
    console.print(describe_devices(), soft_wrap=True)
    dataset = _open_pictures(config, pictures)
    config, variables = load_matching_weights(config, weights)
    config = _prepare_out(config, dataset, out, DETECTIONS_FILE, exact_padding)
    results = _detect_all(config, variables, dataset, console)
    write_detections(out / DETECTIONS_FILE, results, second_stage(config).category_ids)
    _write_picture_list(console, dataset, out, DETECTIONS_FILE)
    if draw:
        names = second_stage(config).class_names
        _draw_detections(console, out, dataset, results, names, draw, with_truth=False)


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
    console.print(f"weights are in {out}", soft_wrap=True)


def convert_to_torch(weights: Path, file: Path) -> None:
    """Write weights as a PyTorch file with the original's key names.

    Raises:
      UserError: the weights cannot be read, or the file exists or cannot be written.
    """
    torch_weights.to_torch(weights, file)
    make_console().print(f"weights are in {file}", soft_wrap=True)


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
    train(config, workdir, resume=False)
    dataset = open_eval_data(config.data)
    config, variables = load_matching_weights(config, workdir)
    folder = workdir / "pictures"
    make_folder(folder)
    if detector:
        found = _detect_all(config, variables, dataset, console)[:DEMO_PICTURES]
        names = second_stage(config).class_names
        _draw_detections(console, folder, dataset, found, names, DEMO_BOXES, with_truth=True)
    else:
        proposed = _propose_all(config, variables, dataset, console)[:DEMO_PICTURES]
        _draw_proposals(console, folder, dataset, proposed, DEMO_BOXES, with_truth=True)
    draw_curves(workdir / METRICS_FILE, task_of(config).curves, workdir / CURVES_FILE)
    console.print(f"learning curves are in {workdir / CURVES_FILE}", soft_wrap=True)


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


def _open_pictures(config: Config, pictures: list[str]) -> Dataset:
    """Return the pictures that the user named, or those of ``data.eval_split`` without any."""
    if pictures:
        return PictureFiles(find_pictures(pictures))
    try:
        return open_eval_data(config.data)
    except UserError as error:
        raise UserError(
            f"no picture is named, and the evaluation data cannot be read: {error}. Name pictures, "
            "folders of pictures, or globs in quotes, or a dataset with --data.root."
        ) from None


def _prepare_out(
    config: Config, dataset: Dataset, out: Path, results_file: str, exact_padding: bool
) -> Config:
    """Check that the results can be written, and return the config for the padding."""
    for name in (results_file, PICTURES_FILE):
        check_out_file(out / name)
    return _with_exact_padding(config, dataset) if exact_padding else config


def _with_exact_padding(config: Config, dataset: Dataset) -> Config:
    return replace(config, data=with_exact_padding(dataset, config.data))


def _propose_all(
    config: Config, variables: Variables, dataset: Dataset, console: Console
) -> list[PictureProposals]:
    function = make_propose_function(config)
    return propose_with_progress(function, variables, dataset, config, console)


def _detect_all(
    config: Config, variables: Variables, dataset: Dataset, console: Console
) -> list[PictureDetections]:
    function = make_detect_function(config)
    return detect_with_progress(function, variables, dataset, config, console)


def _write_picture_list(console: Console, dataset: Dataset, out: Path, results_file: str) -> None:
    write_json(out / PICTURES_FILE, {"images": coco_images(dataset.pictures)})
    kind = Path(results_file).stem
    console.print(
        f"{kind} are in {out / results_file}, the list of pictures in {out / PICTURES_FILE}",
        soft_wrap=True,
    )


def _draw_proposals(
    console: Console,
    folder: Path,
    dataset: Dataset,
    results: Sequence[PictureProposals],
    best: int,
    with_truth: bool,
) -> None:
    def drawn(image: Pixels, picture: Picture, result: PictureProposals) -> Pixels:
        truth = training_boxes(picture)[0] if with_truth else None
        return draw_boxes(image, result.boxes_xyxy[:best], result.scores[:best], truth)

    _draw(console, folder, dataset, results, drawn, f"{best} best proposals")


def _draw_detections(
    console: Console,
    folder: Path,
    dataset: Dataset,
    results: Sequence[PictureDetections],
    class_names: Sequence[str],
    best: int,
    with_truth: bool,
) -> None:
    def drawn(image: Pixels, picture: Picture, result: PictureDetections) -> Pixels:
        truth = training_boxes(picture) if with_truth else None
        return draw_detections(image, result.best(best), class_names, truth)

    _draw(console, folder, dataset, results, drawn, f"{best} best detections")


def _draw(
    console: Console,
    folder: Path,
    dataset: Dataset,
    results: Sequence[AnyResult],
    drawn: Callable[[Pixels, Picture, AnyResult], Pixels],
    what: str,
) -> None:
    """Write a copy of each picture with its results: ``drawn(image, picture, result)``."""
    position = {picture.image_id: index for index, picture in enumerate(dataset.pictures)}
    with picture_progress(console, "drawing", len(results)) as advance:
        for result in results:
            index = position[result.image_id]
            picture = dataset.pictures[index]
            image = drawn(dataset.load_image(index), picture, result)
            save_picture(folder / f"{result.image_id}_{Path(picture.name).stem}.png", image)
            advance(1)
    console.print(f"{len(results)} pictures with their {what} are in {folder}", soft_wrap=True)
