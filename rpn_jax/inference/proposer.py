"""Pictures in, proposals out: batched inference over datasets, files and arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from rpn_jax.config import Config
from rpn_jax.console import picture_progress
from rpn_jax.errors import UserError
from rpn_jax.inference.results import PictureProposals, picture_proposals
from rpn_jax.models import RPN, variable_shapes
from rpn_jax.models.folding import fold_norms
from rpn_jax.models.rpn.proposals import propose
from rpn_jax.ops.pixels import normalize_images
from rpn_jax.structures import Batch, Proposals, SourceBatch, Variables
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

DATA_AXIS = "pictures"


def make_propose_function(config: Config) -> ProposeFunction:
    """The compiled way from padded uint8 pictures to proposals in original pixels.

    Returns:
      A function of weights as `prepare_variables` makes them, images (uint8 RGB), image_sizes
      (height, width) and scale_factors (width, height), the last three as in `Batch`; it compiles
      once a canvas and batch size.
    """
    model = RPN(config.model, folded=True)

    @jax.jit
    def propose_batch(
        variables: Variables,
        images: UInt8[Array, "B H W 3"],
        image_sizes: Int[Array, "B 2"],
        scale_factors: Float[Array, "B 2"],
    ) -> Proposals:
        normalized = normalize_images(images, image_sizes, config.pixels)
        outputs: Any = model.apply(variables, normalized)
        return propose(config, outputs, image_sizes, scale_factors)

    return propose_batch


def prepare_variables(config: Config, variables: Variables, placement: Sharding) -> Variables:
    """Weights as functions of `make_propose_function` take them.

    Args:
      config: of the network.
      variables: its variables.
      placement: where to, on devices of this process.
    """
    folded = fold_norms(config.model, variables, kernels_ohwi=jax.default_backend() != "cpu")
    return jax.device_put(folded, placement)


def on_all_devices() -> NamedSharding:
    """Placement of weights beside each of the local devices' share of a batch."""
    return NamedSharding(_mesh(), PartitionSpec())


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (DATA_AXIS,))


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
    from rpn_jax.data.on_device import to_batch
    from rpn_jax.data.pipeline import eval_batches, prefetch

    mesh = _mesh()
    pictures = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    # A single picture need not pay for a whole batch, nor each number of them a compilation.
    power_of_two = 1 << (len(dataset.pictures) - 1).bit_length()
    batch_size = min(config.data.eval_batch_size, power_of_two)
    data = replace(config.data, eval_batch_size=-(-batch_size // mesh.size) * mesh.size)

    def place(batch: Batch | SourceBatch) -> tuple[np.ndarray, Proposals]:
        placed = to_batch(jax.device_put(batch, pictures))
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
