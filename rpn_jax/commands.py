"""The verbs of the command line as functions."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from rpn_jax.config import Config, load_config, replace
from rpn_jax.console import make_console, picture_progress
from rpn_jax.data.catalog import open_dataset
from rpn_jax.data.dataset import Dataset
from rpn_jax.data.files import PictureFiles, find_pictures
from rpn_jax.data.pipeline import with_exact_padding
from rpn_jax.errors import UserError
from rpn_jax.evaluation.recall import check_split, recall_table
from rpn_jax.evaluation.recall import evaluate as evaluate_recall
from rpn_jax.files import check_out_file, json_figures, make_folder, write_json
from rpn_jax.inference.draw import draw_boxes, save_picture
from rpn_jax.inference.proposer import make_propose_function, propose_with_progress
from rpn_jax.inference.results import PictureProposals, write_results
from rpn_jax.models import variable_shapes
from rpn_jax.runtime import set_up_compiling
from rpn_jax.structures import Variables
from rpn_jax.training.curves import draw_curves
from rpn_jax.training.log import METRICS_FILE
from rpn_jax.training.run import train_run
from rpn_jax.weights.checkpoints import last_saved
from rpn_jax.weights.folders import check_same_model, load_variables
from rpn_jax.weights.trees import check_variables

PROPOSALS_FILE = "proposals.json"
PICTURES_FILE = "pictures.json"
CURVES_FILE = "curves.png"
DEMO_PICTURES = 8
DEMO_BOXES = 12


def train(config: Config, workdir: Path, resume: bool) -> None:
    """Train, evaluate and keep checkpoints in ``workdir``.

    A run that was interrupted goes on with ``resume`` where it stopped. On a CPU it ends with the
    same weights, bit for bit, as one that never was.

    Raises:
      UserError: bad data, a work directory that holds another run, has one at work in it or cannot
        be written, or a loss that is not finite.
      KeyboardInterrupt: Ctrl-C or SIGTERM came; what was done is saved.
    """
    set_up_compiling()
    train_run(config, workdir, resume, make_console())


def evaluate(
    config: Config, weights: Path, out: Path | None, exact_padding: bool
) -> dict[str, float]:
    """Measure the recall of proposals on ``data.eval_split``, print it, and write it to ``out``.

    Args:
      config: the network's config.
      weights: its weights.
      out: JSON file to write, if any.
      exact_padding: pad each picture to a multiple of 32 pixels and no further.

    Raises:
      UserError: bad data, weights of another model, or an ``out`` that cannot be written.
    """
    console = make_console()
    set_up_compiling()
    split = config.data.eval_split
    dataset = open_dataset(config.data, split)
    check_split(split, dataset.annotations, "use another --data.eval-split")
    variables = weights_of(config, weights)
    if out is not None:
        check_out_file(out)
    if exact_padding:
        config = _exactly_padded(config, dataset)
    results = _propose_all(config, variables, dataset, console)
    figures = evaluate_recall(dataset.annotations, results)
    console.print(recall_table(figures))
    if out is not None:
        record = {
            "config": config.name,
            "weights": str(weights),
            "split": split,
            "pictures": len(dataset.pictures),
            "exact_padding": exact_padding,
            "figures": json_figures(figures),
        }
        write_json(out, record)
        console.print(f"figures written to {out}", soft_wrap=True)
    return figures


def propose(
    config: Config,
    weights: Path,
    pictures: list[str],
    out: Path,
    draw: int,
    exact_padding: bool,
) -> None:
    """Write proposals for picture files: ``OUT/proposals.json``, and drawn pictures.

    Every picture's header is read before the work; proposals are written once all are done.

    Args:
      config: the network's config.
      weights: its weights.
      pictures: paths, folders or globs.
      out: folder to write to.
      draw: boxes to draw on a copy of each picture; 0 draws none.
      exact_padding: pad each picture to a multiple of 32 pixels and no further.

    Raises:
      UserError: a picture that is missing or is none, weights of another model, or an ``out``
        that cannot be written.
    """
    console = make_console()
    set_up_compiling()
    dataset = PictureFiles(find_pictures(pictures))
    variables = weights_of(config, weights)
    for name in (PROPOSALS_FILE, PICTURES_FILE):
        check_out_file(out / name)
    if exact_padding:
        config = _exactly_padded(config, dataset)
    results = _propose_all(config, variables, dataset, console)
    write_results(out / PROPOSALS_FILE, results)
    write_json(out / PICTURES_FILE, {"images": dataset.annotations["images"]})
    console.print(
        f"proposals in {out / PROPOSALS_FILE}, their pictures in {out / PICTURES_FILE}",
        soft_wrap=True,
    )
    if draw:
        _draw(console, out, dataset, results, draw, with_truth=False)


def convert(source: str, out: Path, config_name: str | None) -> None:
    """Turn a PyTorch file into a folder of weights, and print what became of every key.

    Args:
      source: a path, an https URL, or a name such as ``torchvision://resnet50``.
      out: folder to write, a new one.
      config_name: name or path of the config that the weights are for; None finds it.

    Raises:
      UserError: a source that cannot be had, is refused or does not fit, or an ``out`` that exists.
    """
    from rpn_jax.weights import torch as torch_weights

    console = make_console()
    report = torch_weights.convert(source, out, config_name)
    torch_weights.print_report(report, console)
    console.print(f"weights are in {out}", soft_wrap=True)


def convert_to_torch(weights: Path, file: Path) -> None:
    """Write weights as a PyTorch file under the original's key names.

    Raises:
      UserError: no such weights, or a file that exists or cannot be written.
    """
    from rpn_jax.weights import torch as torch_weights

    torch_weights.to_torch(weights, file)
    make_console().print(f"weights are in {file}", soft_wrap=True)


def demo(workdir: Path) -> None:
    """Train a small model on the built-in pictures, evaluate it, and draw what it proposes.

    Raises:
      UserError: a work directory that holds a run, or cannot be written.
      KeyboardInterrupt: Ctrl-C or SIGTERM came; what was done is saved.
    """
    console = make_console()
    config = load_config("rpn_demo")
    if last_saved(workdir) is not None:
        raise UserError(
            f"folder {workdir}: holds a run already; remove it or name another --workdir"
        )
    train(config, workdir, resume=False)
    dataset = open_dataset(config.data, config.data.eval_split)
    variables = weights_of(config, workdir)
    results = _propose_all(config, variables, dataset, console)
    folder = workdir / "pictures"
    make_folder(folder)
    _draw(console, folder, dataset, results[:DEMO_PICTURES], DEMO_BOXES, with_truth=True)
    draw_curves(workdir / METRICS_FILE, workdir / CURVES_FILE)
    console.print(f"curves of loss and recall are in {workdir / CURVES_FILE}", soft_wrap=True)


def _propose_all(
    config: Config, variables: Variables, dataset: Dataset, console: Console
) -> list[PictureProposals]:
    function = make_propose_function(config)
    return propose_with_progress(function, variables, dataset, config, console)


def _exactly_padded(config: Config, dataset: Dataset) -> Config:
    return replace(config, data=with_exact_padding(dataset, config.data))


def weights_of(config: Config, folder: Path) -> Variables:
    """The weights in a folder. Raises UserError where they are of another model than the config."""
    variables = load_variables(folder)
    check_variables(variable_shapes(config), variables, folder)
    check_same_model(config, folder)
    return variables


def _draw(
    console: Console,
    folder: Path,
    dataset: Dataset,
    results: list[PictureProposals],
    best: int,
    with_truth: bool,
) -> None:
    position = {picture.image_id: index for index, picture in enumerate(dataset.pictures)}
    with picture_progress(console, "drawing", len(results)) as advance:
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
            advance(1)
    console.print(
        f"{len(results)} pictures with their {best} best proposals are in {folder}", soft_wrap=True
    )
