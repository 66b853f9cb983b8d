"""Pictures in, proposals out: batched inference over datasets, files and arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rpn_jax.config import Config
from rpn_jax.console import picture_progress
from rpn_jax.devices import device_mesh
from rpn_jax.errors import UserError
from rpn_jax.inference.forward import prepare_variables, propose_pictures
from rpn_jax.inference.results import PictureProposals, picture_proposals
from rpn_jax.models import variable_shapes
from rpn_jax.structures import Batch, Proposals, Variables
from rpn_jax.weights.trees import check_variables

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, UInt8
    from rich.console import Console

    from rpn_jax.data.dataset import Dataset

ProposeFunction = Callable[
    [
        Variables,
        "UInt8[Array, 'B H W 3']",
        "Int[Array, 'B 2']",
        "Float[Array, 'B 2']",
    ],
    Proposals,
]

PICTURE_AXIS = "pictures"
"""Name of the mesh axis over which the pictures of a batch are shared."""


def make_propose_function(config: Config) -> ProposeFunction:
    """Return `propose_pictures`, compiled for all local devices.

    Each device computes the proposals of its share of the pictures, without any communication.
    The number of pictures must be a multiple of the number of devices.

    Returns:
      A function of weights (`prepare_variables` with the placement `on_all_devices`), images,
      image_sizes and scale_factors. It compiles once for each canvas and batch size.
    """
    # jit alone would partition the program itself. It then gathers the whole batch on every device
    # for each top-k and each grouped convolution.
    share = PartitionSpec(PICTURE_AXIS)
    propose_share = jax.shard_map(
        partial(propose_pictures, config),
        mesh=device_mesh(PICTURE_AXIS),
        in_specs=(PartitionSpec(), share, share, share),
        out_specs=share,
    )
    return jax.jit(propose_share)


def on_all_devices() -> NamedSharding:
    """Return the placement of weights for `make_propose_function`: a copy on each device."""
    return NamedSharding(device_mesh(PICTURE_AXIS), PartitionSpec())


def propose_dataset(
    propose_function: ProposeFunction,
    prepared: Variables,
    dataset: Dataset,
    config: Config,
    on_pictures: Callable[[int], None],
) -> Iterator[PictureProposals]:
    """Proposals for every picture of a dataset, grouped by canvas.

    Batches are shared among all local devices: ``data.eval_batch_size``, or what few pictures need,
    is rounded up to a multiple of them.

    Args:
      propose_function: what `make_propose_function` returned.
      prepared: what `prepare_variables` made for `on_all_devices`.
      dataset: pictures.
      config: as the function's; ``config.data`` decides sizes and batches.
      on_pictures: is told how many pictures were done, batch by batch.
    """
    from rpn_jax.data.on_device import finish_resize
    from rpn_jax.data.pipeline import eval_batches, prefetch

    mesh = device_mesh(PICTURE_AXIS)
    pictures = NamedSharding(mesh, PartitionSpec(PICTURE_AXIS))
    # A single picture need not pay for a whole batch, nor each number of them a compilation.
    power_of_two = 1 << (len(dataset.pictures) - 1).bit_length()
    batch_size = min(config.data.eval_batch_size, power_of_two)
    data = replace(config.data, eval_batch_size=-(-batch_size // mesh.size) * mesh.size)

    def place(batch: Batch) -> tuple[np.ndarray, Proposals]:
        placed = finish_resize(jax.device_put(batch, pictures))
        proposals = propose_function(
            prepared, placed.images, placed.image_sizes, placed.scale_factors
        )
        return np.asarray(batch.indices), proposals

    for indices, proposals in prefetch(eval_batches(dataset, data), place):
        ids = [dataset.pictures[index].image_id for index in indices if index >= 0]
        yield from picture_proposals(ids, jax.device_get(proposals))
        on_pictures(len(ids))


def propose_with_progress(
    propose_function: ProposeFunction,
    variables: Variables,
    dataset: Dataset,
    config: Config,
    console: Console,
) -> list[PictureProposals]:
    """`propose_dataset` in the dataset's order, shown by `picture_progress`."""
    prepared = prepare_variables(config, variables, on_all_devices())
    with picture_progress(console, "proposing", len(dataset.pictures)) as advance:
        results = list(propose_dataset(propose_function, prepared, dataset, config, advance))
    position = {picture.image_id: index for index, picture in enumerate(dataset.pictures)}
    return sorted(results, key=lambda result: position[result.image_id])


class Proposer:
    """Proposals for pictures of any size.

        proposer = rpn_jax.Proposer(config, variables)
        first, second = proposer(["a.jpg", array_hwc_uint8_rgb])
        first.boxes_xyxy, first.scores

    Args:
      config: the network's config; pictures are resized and padded as ``config.data`` says.
      variables: its weights.

    Raises:
      UserError: weights of another model.
    """

    def __init__(self, config: Config, variables: Variables) -> None:
        check_variables(variable_shapes(config), variables, "given")
        self._config = config
        self._prepared = prepare_variables(config, variables, on_all_devices())
        self._function = make_propose_function(config)

    def __call__(
        self, pictures: Sequence[str | Path | UInt8[np.ndarray, "H W 3"]]
    ) -> list[PictureProposals]:
        """Proposals of each picture, best first, in its original pixels.

        Args:
          pictures: paths, or uint8 RGB arrays.

        Returns:
          One entry a picture, in their order, with ``image_id`` 1, 2, ...

        Raises:
          UserError: a file that is missing or is no picture, an array that is none, or a picture
            instead of a list.
        """
        from rpn_jax.data.files import PictureFiles

        if isinstance(pictures, str | Path | np.ndarray | jax.Array):
            kind = type(pictures).__name__
            raise UserError(f"pictures: is one {kind}; give a list, [picture] for a single one")
        if not pictures:
            return []
        dataset = PictureFiles([Path(item) if isinstance(item, str) else item for item in pictures])
        results = propose_dataset(
            self._function, self._prepared, dataset, self._config, on_pictures=lambda _: None
        )
        return sorted(results, key=lambda result: result.image_id)
