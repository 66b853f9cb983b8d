"""Run a model over any number of pictures, and keep only one batch of results in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from rich.console import Console

from rpn_jax.config import Config
from rpn_jax.console import picture_progress, say
from rpn_jax.data.dataset import Dataset
from rpn_jax.data.plan import plan_eval_batches, plan_layout
from rpn_jax.errors import UserError
from rpn_jax.inference.batches import (
    BatchFunction,
    Outputs,
    Result,
    SplitBatch,
    evaluation_data,
    on_all_devices,
    run_dataset,
)
from rpn_jax.inference.forward import prepare_variables
from rpn_jax.inference.part_file import PartFile, open_part_file
from rpn_jax.inference.results_file import write_rows
from rpn_jax.inference.work import describe_list, describe_model
from rpn_jax.structures import Variables

if TYPE_CHECKING:
    from jaxtyping import Int


@contextmanager
def part_file_of(
    path: Path, config: Config, variables: Variables, dataset: Dataset, min_score: float
) -> Iterator[PartFile]:
    """Open the part file of a results file, see `open_part_file`.

    Args:
      path: results file. The part file lies beside it.
      config: config of the model and the data.
      variables: weights of the network.
      dataset: pictures.
      min_score: smallest score that is written.

    Raises:
      UserError: a reason of `open_part_file`.
    """
    work = _describe_work(config, variables, dataset, min_score)
    batches = map(_used, _planned(dataset, config))
    part_path = path.with_name(f"{path.stem}.part.jsonl")
    with open_part_file(part_path, work, batches, dataset) as part:
        yield part


def stream_results(
    function: BatchFunction[Outputs],
    variables: Variables,
    dataset: Dataset,
    config: Config,
    split: SplitBatch[Outputs, Result],
    rows_of: Callable[[Result], Iterable[str]],
    part: PartFile,
    activity: str,
    console: Console,
) -> None:
    """Append the results of the pictures that are not finished to the part file.

    The batches are the same with and without an interruption, and so are the results.

    Args:
      function, variables, dataset, config, split: as in `run_with_progress`.
      rows_of: returns the entries of a picture in the results file, as JSON.
      part: open part file of the same work.
      activity: name of the work on the console, for example 'proposing'.
      console: console to print to.

    Raises:
      UserError: a picture cannot be read, or the part file cannot be written.
    """
    total, batches = len(dataset.pictures), _planned(dataset, config)
    done = part.num_pictures
    if done:
        say(
            console,
            f"continuing after {done} of {total} pictures, whose results are in {part.path}",
        )
    if part.finished == len(batches):
        return
    prepared = prepare_variables(config, variables, on_all_devices())
    left = slice(part.finished, None)
    with picture_progress(console, activity, total, done) as advance:
        results = run_dataset(function, prepared, dataset, config, split, left, part.skipped)
        try:
            for batch, found in zip(batches[left], results, strict=True):
                rows = {position: rows_of(result) for position, result in found.items()}
                part.append(_used(batch), rows)
                advance(len(found))
        except (UserError, KeyboardInterrupt):
            if part.finished:
                say(
                    console,
                    f"stopped after {part.num_pictures} of {total} pictures, whose results are in "
                    f"{part.path}. The same command continues after them.",
                )
            raise


def write_final(path: Path, part: PartFile) -> None:
    """Write the results file from a whole part file, in the order of the dataset.

    Raises:
      UserError: the part file cannot be read, or the path cannot be written.
    """
    texts = (bytes(row).decode() for _, rows in part.results() for row in rows)
    write_rows(path, texts)


def _planned(dataset: Dataset, config: Config) -> Int[np.ndarray, "batches B"]:
    data = evaluation_data(dataset, config)
    return plan_eval_batches(plan_layout(dataset.pictures, data), data)


def _used(batch: Int[np.ndarray, " B"]) -> list[int]:
    return batch[batch >= 0].tolist()


def _describe_work(
    config: Config, variables: Variables, dataset: Dataset, min_score: float
) -> dict[str, str]:
    """Return all that determines the results, by name."""
    return {
        **describe_model(config, variables),
        "platform": jax.default_backend(),
        "pictures": describe_list(
            f"{picture.image_id} {picture.name} {picture.height} {picture.width}"
            for picture in dataset.pictures
        ),
        "batch size": str(evaluation_data(dataset, config).eval_batch_size),
        "min_score": str(min_score),
    }
