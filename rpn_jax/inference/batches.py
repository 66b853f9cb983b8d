"""Batched inference on all local devices, the same for proposals and detections.

`on_shares` compiles a forward pass, and `run_dataset` applies it to the pictures of a dataset.
The modules of `rpn_jax.data` are imported where they are used, so that the benchmark of a device
needs no packages that decode pictures.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rpn_jax.config import Config, DataConfig
from rpn_jax.console import picture_progress
from rpn_jax.devices import device_mesh, jit_inference
from rpn_jax.errors import UserError
from rpn_jax.hosts.exchange import ALL_BATCHES, gather, own_batches
from rpn_jax.inference.forward import prepare_variables
from rpn_jax.structures import Batch, Variables

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, UInt8
    from rich.console import Console

    from rpn_jax.data.dataset import Dataset
    from rpn_jax.data.files import PictureFiles

Outputs = TypeVar("Outputs")
"""Results of a batch on the devices: `Proposals`, `Detections`, or a tuple of both."""

Result = TypeVar("Result")
"""Results of one picture on the host, such as `PictureProposals`."""

BatchFunction = Callable[
    [
        Variables,
        "UInt8[Array, 'B H W 3']",
        "Int[Array, 'B 2']",
        "Float[Array, 'B 2']",
    ],
    Outputs,
]
"""A forward pass: (prepared weights, images, image_sizes, scale_factors) -> results."""

SplitBatch = Callable[[Sequence[int], Outputs], list[Result]]
"""Returns the results of each picture: (image ids, results of those pictures on the host)."""

EVAL_BATCH_SIZE = 8
"""Number of pictures for each device if ``data.eval_batch_size`` is 0."""

PICTURE_AXIS = "pictures"
"""Name of the mesh axis over which the pictures of a batch are shared."""


def on_shares(config: Config, forward: Callable[..., Outputs]) -> BatchFunction[Outputs]:
    """Return a forward pass of `rpn_jax.inference.forward`, compiled for all local devices.

    Each device computes the results of its share of the pictures, without any communication. The
    number of pictures must be a multiple of the number of devices.

    Args:
      config: first argument of ``forward``.
      forward: `propose_pictures`, `detect_pictures`, or a function with the same arguments.

    Returns:
      A function of weights (`prepare_variables` with the placement `on_all_devices`), images,
      image_sizes and scale_factors. It compiles once for each canvas and batch size.
    """
    # jit alone would partition the program itself. It then gathers the whole batch on every device
    # for each top-k and each grouped convolution.
    share = PartitionSpec(PICTURE_AXIS)
    forward_share = jax.shard_map(
        partial(forward, config),
        mesh=device_mesh(PICTURE_AXIS),
        in_specs=(PartitionSpec(), share, share, share),
        out_specs=share,
    )
    return jit_inference(forward_share)


def on_all_devices() -> NamedSharding:
    """Return the placement of weights for `on_shares`: a copy on each device."""
    return NamedSharding(device_mesh(PICTURE_AXIS), PartitionSpec())


def evaluation_data(dataset: Dataset, config: Config) -> DataConfig:
    """Return ``config.data`` with the number of pictures in a batch of `run_dataset`.

    It is ``data.eval_batch_size``, or what few pictures need, rounded up to a multiple of the
    number of devices.
    """
    devices = device_mesh(PICTURE_AXIS).size
    # A single picture need not pay for a whole batch, nor each number of them a compilation.
    power_of_two = 1 << (len(dataset.pictures) - 1).bit_length()
    wanted = config.data.eval_batch_size or EVAL_BATCH_SIZE * devices
    batch_size = min(wanted, power_of_two)
    return replace(config.data, eval_batch_size=-(-batch_size // devices) * devices)


def run_dataset(
    function: BatchFunction[Outputs],
    prepared: Variables,
    dataset: Dataset,
    config: Config,
    split: SplitBatch[Outputs, Result],
    selected: slice = ALL_BATCHES,
    skipped: Iterable[int] = (),
) -> Iterator[dict[int, Result]]:
    """Yield the results of each batch of `plan_eval_batches`, by position in the dataset.

    The pictures of a batch are shared among all local devices, see `evaluation_data`.

    Args:
      function: what `on_shares` returned.
      prepared: what `prepare_variables` returned for the placement `on_all_devices`.
      dataset: pictures.
      config: config of the function. ``config.data`` sets sizes and batches.
      split: function that returns the results of each picture of a batch.
      selected, skipped: as in `eval_batches`.
    """
    from rpn_jax.data.on_device import finish_resize
    from rpn_jax.data.pipeline import eval_batches, prefetch

    pictures = NamedSharding(device_mesh(PICTURE_AXIS), PartitionSpec(PICTURE_AXIS))
    batches = eval_batches(dataset, evaluation_data(dataset, config), selected, skipped)

    def place(batch: Batch) -> tuple[np.ndarray, Outputs]:
        placed = finish_resize(jax.device_put(batch, pictures))
        outputs = function(prepared, placed.images, placed.image_sizes, placed.scale_factors)
        return np.asarray(batch.indices), outputs

    for slots, outputs in prefetch(batches, place):
        # Empty pictures fill up a batch, or stand in the middle for one that cannot be read.
        filled = slots >= 0
        of_pictures = jax.tree.map(itemgetter(filled), jax.device_get(outputs))
        indices = slots[filled].tolist()
        ids = [dataset.pictures[index].image_id for index in indices]
        yield dict(zip(indices, split(ids, of_pictures), strict=True))


def run_with_progress(
    function: BatchFunction[Outputs],
    variables: Variables,
    dataset: Dataset,
    config: Config,
    split: SplitBatch[Outputs, Result],
    activity: str,
    console: Console,
) -> list[Result]:
    """Return the results of `run_dataset` in the dataset's order, and show the progress.

    Several processes share the batches. All of them return the results of all pictures.

    Args:
      function, dataset, config, split: as in `run_dataset`.
      variables: weights of the network, with their norms.
      activity: name of the work on the console, for example 'proposing'.
      console: console to print to.
    """
    prepared = prepare_variables(config, variables, on_all_devices())
    share = -(-len(dataset.pictures) // jax.process_count())
    own: dict[int, Result] = {}
    with picture_progress(console, activity, share) as advance:
        for batch in run_dataset(function, prepared, dataset, config, split, own_batches()):
            own.update(batch)
            advance(len(batch))
    return in_order(dict(ChainMap(*gather(own))))


def run_listed(
    function: BatchFunction[Outputs],
    prepared: Variables,
    pictures: Sequence[str | Path | UInt8[np.ndarray, "H W 3"]],
    config: Config,
    split: SplitBatch[Outputs, Result],
) -> list[Result]:
    """Return the results of paths and arrays in their order. They get the image ids 1, 2, ...

    With ``data.on_bad_picture`` 'skip', a picture that cannot be read has no result.

    Args:
      function, prepared, config, split: as in `run_dataset`.
      pictures: paths, or uint8 RGB arrays.

    Raises:
      UserError: a file is missing or is not a picture, an array has another shape or type, or
        ``pictures`` is a single picture instead of a list.
    """
    dataset = listed_pictures(pictures, config.data)
    if not dataset.pictures:
        return []
    results: dict[int, Result] = {}
    for batch in run_dataset(function, prepared, dataset, config, split):
        results.update(batch)
    return in_order(results)


def in_order(results: Mapping[int, Result]) -> list[Result]:
    """Return results in the order of their positions."""
    return [results[position] for position in sorted(results)]


def listed_pictures(pictures: Any, config: DataConfig) -> PictureFiles:
    """Return the pictures that a user passed as a dataset, with ids 1, 2, ...

    Args:
      pictures: a sequence of paths, URLs and uint8 RGB arrays.
      config: ``on_bad_picture`` says what to do about a file that is not a picture.

    Raises:
      UserError: a file is missing or is not a picture, an array has another shape or type, or
        ``pictures`` is a single picture or no list.
    """
    from rpn_jax.data.bad_pictures import BadPictures
    from rpn_jax.data.files import PictureFiles
    from rpn_jax.inference.sources import picture_path

    is_one = isinstance(pictures, str | os.PathLike | np.ndarray | jax.Array)
    if is_one or not isinstance(pictures, Iterable):
        kind = type(pictures).__name__
        raise UserError(
            f"pictures: is of type {kind}; give a list: [picture] for a single one, list(pictures) "
            "for an array of several"
        )
    items = [
        picture_path(os.fspath(item)) if isinstance(item, str | os.PathLike) else item
        for item in pictures
    ]
    return PictureFiles(items, bad=BadPictures(config))
