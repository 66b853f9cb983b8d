"""``python -m tools.parity.precisions CONFIG --weights DIR``: compare precisions with float32."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import tyro
from jax.sharding import SingleDeviceSharding

from rpn_jax.cli import leading_config, read_flags
from rpn_jax.config import Config, Precision, with_precision
from rpn_jax.console import make_console, picture_progress, say
from rpn_jax.data.catalog import open_eval_data
from rpn_jax.data.dataset import Dataset
from rpn_jax.data.on_device import finish_resize
from rpn_jax.data.pipeline import eval_batches
from rpn_jax.devices import jit_inference, use_platform
from rpn_jax.errors import UserError, exit_code
from rpn_jax.evaluation.recall import RECALL_FIGURES, coco_recall
from rpn_jax.files import check_out_file, json_figures, write_json
from rpn_jax.inference.forward import prepare_variables, run_network
from rpn_jax.inference.results import PictureProposals, picture_proposals
from rpn_jax.models.rpn.proposals import propose
from rpn_jax.runtime import environment, set_up_compiling
from rpn_jax.structures import Batch, Proposals, RPNOutputs, Variables
from rpn_jax.verbs import OptionalPath, Overrides, Platform
from rpn_jax.weights.models import load_matching_weights
from tools.parity.compare import SMALLEST_NORM, match_proposals, proposal_rows, worst

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from rich.table import Table

PROGRAM = "python -m tools.parity.precisions"
REFERENCE: Precision = "float32"
BOX_TOLERANCE = 1.0
"""Maximum difference of each side of two proposals that count as the same, in original pixels."""
SCORE_TOLERANCE = 0.01
"""Maximum difference of their scores."""

Forward = Callable[[Batch], tuple[RPNOutputs, Proposals]]


@dataclass(frozen=True)
class Options:
    """Compare each precision with float32 on data.eval-split: head outputs, proposals, recall.

    All precisions use the same pictures and weights, on one device. The config's model.precision
    has no effect.
    """

    config: Overrides
    weights: Path = tyro.MISSING
    """Folder of weights, or a work directory of 'train'."""
    precisions: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
    """Precisions to measure. float32 is always measured."""
    out: OptionalPath = None
    """JSON file to write the rows to."""
    platform: Platform = "auto"


@dataclass(frozen=True)
class PrecisionRow:
    """Figures of one precision, compared with float32."""

    precision: Precision
    head_outputs: dict[str, float]
    """Relative L2 difference of each level's objectness and deltas, over all pictures."""
    found: float
    """Share of float32's proposals that have a partner, see `share_found`."""
    recall: dict[str, float]
    """AR@100, AR@300 and AR@1000 by the protocol ``proposal``."""


class Computed(NamedTuple):
    """Results of one precision on some pictures. Arrays are in the order of `_by_level`."""

    squared_distances: Float[ndarray, " 2L"]
    """Sum of squared differences from float32's head outputs, by level."""
    squared_norms: Float[ndarray, " 2L"]
    """Sum of squares of this precision's head outputs, by level."""
    pictures: list[PictureProposals]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command on ``arguments`` (by default the process's) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code(lambda: _run(_parse(words)))


def compare_precisions(
    config: Config,
    variables: Variables,
    dataset: Dataset,
    precisions: Sequence[Precision],
    on_pictures: Callable[[int], None],
) -> list[PrecisionRow]:
    """Return a row for float32 and for each of ``precisions``.

    Args:
      config: config of the network. ``config.data`` determines sizes and batches.
      variables: weights of the network.
      dataset: pictures with ground truth.
      precisions: precisions to measure. float32 is always measured.
      on_pictures: called after each batch with the number of pictures done.

    Raises:
      UserError: there is no picture, a picture cannot be read, or the ground truth has no box.
    """
    if not dataset.pictures:
        raise UserError(f"data.eval_split = {config.data.eval_split!r}: contains no pictures")
    chosen = dict.fromkeys((REFERENCE, *precisions))
    forwards = {precision: make_forward(config, variables, precision) for precision in chosen}
    batches = list(_batches(forwards, dataset, config, on_pictures))
    computed = {name: _join([batch[name] for batch in batches]) for name in chosen}
    return [
        PrecisionRow(
            precision,
            _relative_l2(config, own, computed[REFERENCE]),
            share_found(own.pictures, computed[REFERENCE].pictures),
            _recalls(dataset, own.pictures),
        )
        for precision, own in computed.items()
    ]


def make_forward(config: Config, variables: Variables, precision: Precision) -> Forward:
    """Return a compiled function of a batch: head outputs, and proposals in original pixels."""
    in_precision = with_precision(config, precision)
    device = SingleDeviceSharding(jax.local_devices()[0])
    prepared = prepare_variables(in_precision, variables, device)

    @jit_inference
    def forward(prepared: Variables, batch: Batch) -> tuple[RPNOutputs, Proposals]:
        outputs = run_network(in_precision, prepared, batch.images, batch.image_sizes)
        return outputs, propose(config, outputs, batch.image_sizes, batch.scale_factors)

    return partial(forward, prepared)


def share_found(ours: list[PictureProposals], reference: list[PictureProposals]) -> float:
    """Return the share of the reference's proposals that have a partner in ours, one to one.

    Partners are within `BOX_TOLERANCE` and `SCORE_TOLERANCE`. The share is 1 if the reference has
    no proposals. Both lists must have the same pictures in the same order.
    """
    found = [
        match_proposals(proposal_rows(own), proposal_rows(theirs), BOX_TOLERANCE, SCORE_TOLERANCE)
        >= 0
        for own, theirs in zip(ours, reference, strict=True)
    ]
    total = sum(map(len, found))
    return sum(map(np.count_nonzero, found)) / total if total else 1.0


def _parse(words: list[str]) -> Options:
    config, flags = leading_config("precisions", words)
    return read_flags(Options(config), flags, f"{PROGRAM} CONFIG")


def _run(options: Options) -> int:
    use_platform(options.platform)
    set_up_compiling()
    config = options.config
    dataset = open_eval_data(config.data)
    config, variables = load_matching_weights(config, options.weights)
    if options.out is not None:
        check_out_file(options.out)
    console = make_console()
    with picture_progress(console, "measuring", len(dataset.pictures)) as advance:
        rows = compare_precisions(config, variables, dataset, options.precisions, advance)
    split = f"{len(dataset.pictures)} pictures of '{config.data.eval_split}'"
    title = f"{config.name} on {split} ({jax.devices()[0].device_kind})"
    console.print(_table(rows, title))
    if options.out is not None:
        record = {
            "config": config.name,
            "weights": str(options.weights),
            "split": config.data.eval_split,
            "pictures": len(dataset.pictures),
            "environment": environment(),
            "rows": [_json_row(row) for row in rows],
        }
        write_json(options.out, record)
        say(console, f"rows written to {options.out}")
    return 0


def _batches(
    forwards: dict[Precision, Forward],
    dataset: Dataset,
    config: Config,
    on_pictures: Callable[[int], None],
) -> Iterator[dict[Precision, Computed]]:
    for batch in eval_batches(dataset, config.data):
        slots = np.asarray(batch.indices)
        filled = slots >= 0
        ids = [dataset.pictures[index].image_id for index in slots[filled]]
        placed = finish_resize(jax.device_put(batch))
        computed = {
            precision: jax.tree.map(itemgetter(filled), jax.device_get(forward(placed)))
            for precision, forward in forwards.items()
        }
        reference = _by_level(computed[REFERENCE][0])
        yield {
            precision: _computed(outputs, proposals, reference, ids)
            for precision, (outputs, proposals) in computed.items()
        }
        on_pictures(len(ids))


def _computed(
    outputs: RPNOutputs, proposals: Proposals, reference: list[ndarray], ids: list[int]
) -> Computed:
    levels = _by_level(outputs)
    return Computed(
        _squares(list(map(np.subtract, levels, reference))),
        _squares(levels),
        picture_proposals(ids, proposals),
    )


def _join(batches: list[Computed]) -> Computed:
    distances, norms, pictures = zip(*batches, strict=True)
    return Computed(
        np.sum(distances, axis=0),
        np.sum(norms, axis=0),
        list(itertools.chain.from_iterable(pictures)),
    )


def _relative_l2(config: Config, own: Computed, reference: Computed) -> dict[str, float]:
    kinds_and_strides = itertools.product(
        ("objectness", "deltas"), config.model.rpn.anchors.strides
    )
    distances, norms = np.sqrt(own.squared_distances), np.sqrt(reference.squared_norms)
    return {
        f"{kind}, stride {stride}": float(distance / max(norm, SMALLEST_NORM))
        for (kind, stride), distance, norm in zip(kinds_and_strides, distances, norms, strict=True)
    }


def _recalls(dataset: Dataset, pictures: list[PictureProposals]) -> dict[str, float]:
    figures = coco_recall(dataset.pictures, pictures)
    return {name: figures[name] for name in RECALL_FIGURES}


def _by_level(outputs: RPNOutputs) -> list[ndarray]:
    """Return objectness, then deltas, as float64."""
    return [np.asarray(level, np.float64) for level in (*outputs.objectness, *outputs.deltas)]


def _squares(levels: list[ndarray]) -> Float[ndarray, " 2L"]:
    return np.array([np.sum(np.square(level)) for level in levels])


def _table(rows: list[PrecisionRow], title: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        caption="Level: relative L2 difference of the head outputs over all pictures. Found: share "
        f"of {REFERENCE}'s proposals with a partner within {BOX_TOLERANCE:g} px and a score "
        f"difference of {SCORE_TOLERANCE:g}, one to one. AR: protocol 'proposal'.",
        caption_justify="left",
        box=SIMPLE,
    )
    table.add_column("precision")
    for heading in ("best level", "worst level", "found", *RECALL_FIGURES):
        table.add_column(heading, justify="right")
    for row in rows:
        best = min(row.head_outputs, key=lambda name: row.head_outputs[name])
        highest = worst(row.head_outputs)
        table.add_row(
            row.precision,
            f"{row.head_outputs[best]:.2g}\n{best}",
            f"{highest.value:.2g}\n{highest.detail}",
            f"{row.found:.2%}",
            *(f"{value:.3f}" for value in row.recall.values()),
        )
    return table


def _json_row(row: PrecisionRow) -> dict[str, Any]:
    return asdict(row) | {
        "head_outputs": json_figures(row.head_outputs),
        "recall": json_figures(row.recall),
    }


if __name__ == "__main__":
    sys.exit(main())
