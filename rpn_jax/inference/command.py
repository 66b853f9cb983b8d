"""The verbs `propose` and `detect`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from rpn_jax.config import Config, replace
from rpn_jax.console import make_console, say
from rpn_jax.data.catalog import open_eval_data
from rpn_jax.data.coco_file import coco_images
from rpn_jax.data.dataset import Dataset
from rpn_jax.data.plan import with_exact_padding
from rpn_jax.devices import describe_devices
from rpn_jax.errors import UserError
from rpn_jax.files import check_out_file, write_json
from rpn_jax.inference.batches import BatchFunction, Outputs, Result, SplitBatch
from rpn_jax.inference.detector import make_detect_function, second_stage
from rpn_jax.inference.drawings import save_detections, save_proposals
from rpn_jax.inference.part_file import PartFile
from rpn_jax.inference.proposer import make_propose_function
from rpn_jax.inference.results import picture_detections, picture_proposals
from rpn_jax.inference.results_file import (
    DETECTIONS_FILE,
    PROPOSAL_CATEGORY,
    PROPOSALS_FILE,
    detection_rows,
    detections_of_rows,
    proposal_rows,
    proposals_of_rows,
)
from rpn_jax.inference.sources import open_pictures
from rpn_jax.inference.stream import part_file_of, stream_results, write_final
from rpn_jax.runtime import set_up_compiling
from rpn_jax.structures import Variables
from rpn_jax.weights.models import load_matching_weights

PICTURES_FILE = "pictures.json"
"""The pictures and the categories of a results file, as in COCO's annotation files."""


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

    The header of every picture is checked before the first one is processed. Finished results are
    kept in ``OUT/proposals.part.jsonl``. The same command continues after them when it was
    interrupted.

    Args:
      config: config of the model. Its data section sets the picture sizes and batches.
      weights: weights of a model, as `rpn_jax.weights.models.load_model` loads them.
      pictures: paths or URLs of pictures, folders or globs. An empty list selects
        ``data.eval_split``.
      out: folder to write to.
      draw: number of proposals to draw on a copy of each picture. 0 draws nothing.
      min_score: only proposals with a higher score are kept.
      exact_padding: pad each picture only to a multiple of 32 pixels.

    Raises:
      UserError: a picture is missing or is not a picture, the weights belong to another model,
        ``out`` cannot be written, or holds unfinished results of other work.
    """
    console = make_console()
    set_up_compiling()
    say(console, describe_devices())
    dataset = _open_pictures(config, pictures, console)
    config, variables = load_matching_weights(config, weights)
    config = _prepare_out(config, dataset, out, PROPOSALS_FILE, exact_padding)
    with _results_of(
        config,
        variables,
        dataset,
        out / PROPOSALS_FILE,
        min_score,
        make_propose_function(config),
        picture_proposals,
        lambda result: proposal_rows(result.above(min_score)),
        {PROPOSAL_CATEGORY: "object"},
        "proposing",
        console,
    ) as part:
        if draw:
            ids = [picture.image_id for picture in dataset.pictures]
            results = ((at, proposals_of_rows(ids[at], rows)) for at, rows in part.results())
            save_proposals(console, out, dataset, results, part.num_results, draw, with_truth=False)


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
    say(console, describe_devices())
    dataset = _open_pictures(config, pictures, console)
    config, variables = load_matching_weights(config, weights)
    config = _prepare_out(config, dataset, out, DETECTIONS_FILE, exact_padding)
    roi = second_stage(config)
    with _results_of(
        config,
        variables,
        dataset,
        out / DETECTIONS_FILE,
        config.roi_detections.min_score,
        make_detect_function(config),
        picture_detections,
        lambda result: detection_rows(result, roi.category_ids),
        dict(zip(roi.category_ids, roi.class_names, strict=True)),
        "detecting",
        console,
    ) as part:
        if draw:
            ids = [picture.image_id for picture in dataset.pictures]
            results = (
                (at, detections_of_rows(ids[at], rows, roi.category_ids))
                for at, rows in part.results()
            )
            save_detections(
                console,
                out,
                dataset,
                results,
                part.num_results,
                roi.class_names,
                draw,
                with_truth=False,
            )


@contextmanager
def _results_of(
    config: Config,
    variables: Variables,
    dataset: Dataset,
    path: Path,
    min_score: float,
    function: BatchFunction[Outputs],
    split: SplitBatch[Outputs, Result],
    rows_of: Callable[[Result], Iterable[str]],
    category_names: Mapping[int, str],
    activity: str,
    console: Console,
) -> Iterator[PartFile]:
    """Write the results file and the list of pictures and categories, and yield the part file.

    The part file is removed when the block succeeds. ``category_names`` are by category id. The
    other arguments are those of `part_file_of` and `stream_results`.
    """
    with part_file_of(path, config, variables, dataset, min_score) as part:
        stream_results(
            function, variables, dataset, config, split, rows_of, part, activity, console
        )
        write_final(path, part)
        pictures = path.with_name(PICTURES_FILE)
        categories = [{"id": number, "name": name} for number, name in category_names.items()]
        images = coco_images(dataset.pictures)
        write_json(pictures, {"images": images, "categories": categories})
        say(console, f"{path.stem} are in {path}, pictures and class names in {pictures}")
        yield part


def _open_pictures(config: Config, pictures: list[str], console: Console) -> Dataset:
    """Return the pictures that the user named, or those of ``data.eval_split`` without any."""
    if pictures:
        return open_pictures(pictures, config.data, console)
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
    return (
        replace(config, data=with_exact_padding(dataset, config.data)) if exact_padding else config
    )
