"""Measure where the host becomes the limit: reading, decoding, resizing and copying of pictures.

python -m tools.input_speed CONFIG --data.root PATH

The pictures of data.train-split are also packed, as 'rpn-jax pack' does. The plain and the packed
dataset are measured in turns, in one run. A row is CPU time in one thread, so its pictures per
second are those of one core.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from rich.table import Table

from rpn_jax.cli import leading_config, read_flags
from rpn_jax.config import Config
from rpn_jax.console import make_console, picture_progress, say
from rpn_jax.data import transforms
from rpn_jax.data.annotated_files import AnnotatedFiles
from rpn_jax.data.catalog import open_train_data
from rpn_jax.data.dataset import Dataset
from rpn_jax.data.images import decode_image
from rpn_jax.data.loading import Slot, load_picture
from rpn_jax.data.packed import PackedDataset, open_packed, pack_split
from rpn_jax.data.plan import plan_layout
from rpn_jax.errors import UserError, exit_code
from rpn_jax.files import write_json
from rpn_jax.verbs import OptionalPath, Overrides

PROGRAM = "python -m tools.input_speed"
Step = Callable[[int], object]


@dataclass(frozen=True)
class Options:
    """Measure pictures per second and core of each step of loading, plain and packed."""

    config: Overrides
    pictures: int = 200
    """Number of pictures to measure."""
    rounds: int = 5
    """Number of passes over the pictures. The median of their times is reported."""
    out: OptionalPath = None
    """JSON file to write the rows to."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command on ``arguments`` (by default the process's) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code(lambda: _run(_parse(words)))


def _parse(words: list[str]) -> Options:
    config, words = leading_config(PROGRAM, words)
    return read_flags(Options(config), words, f"{PROGRAM} CONFIG")


def _run(options: Options) -> int:
    cv2.setNumThreads(0)
    console = make_console()
    data = options.config.data
    plain = open_train_data(data)
    if not isinstance(plain, AnnotatedFiles):
        raise UserError("data.dataset: must be a dataset of picture files, to compare it.")
    plain = replace(plain, pictures=plain.pictures[: options.pictures])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with picture_progress(console, "packing", len(plain.pictures)) as advance:
            pack_split(plain, data, root, "train", "jpeg", advance)
        packed = open_packed(root, "train")
        rows = measure(options.config, plain, packed, options.rounds)
    console.print(_table(rows, options.config, len(plain.pictures)))
    if options.out is not None:
        write_json(options.out, rows)
        say(console, f"rows are in {options.out}")
    return 0


def measure(
    config: Config, plain: AnnotatedFiles, packed: PackedDataset, rounds: int
) -> list[dict[str, float | str]]:
    """Return the pictures per second and core of each step, for both datasets.

    Args:
      config: its data section sets the sizes.
      plain: picture files.
      packed: the same pictures, packed.
      rounds: number of passes.
    """
    layout = plan_layout(plain.pictures, config.data)
    sizes = [tuple(size) for size in layout.sizes.tolist()]
    canvases = [config.data.canvases[bucket] for bucket in layout.buckets]

    def steps(dataset: Dataset, read: Callable[[int], bytes]) -> dict[str, Step]:
        encoded = [read(index) for index in range(len(dataset.pictures))]
        decoded = [decode_image(data, "") for data in encoded]
        resized = [
            transforms.resize(image, size) for image, size in zip(decoded, sizes, strict=True)
        ]
        slots = [
            Slot(index, sizes[index], canvases[index], layout.num_boxes)
            for index in range(len(sizes))
        ]
        return {
            "read": read,
            "decode": lambda index: decode_image(encoded[index], ""),
            "resize": lambda index: transforms.resize(decoded[index], sizes[index]),
            "flip and copy": lambda index: transforms.pad_to(
                transforms.flip(resized[index]), canvases[index]
            ),
            "all": lambda index: load_picture(dataset, slots[index]),
        }

    plain_steps = steps(plain, lambda i: (plain.folder / plain.pictures[i].name).read_bytes())
    packed_steps = steps(packed, lambda i: packed.records[i])
    count = len(plain.pictures)
    rows: list[dict[str, float | str]] = []
    for name, step in plain_steps.items():
        times = np.array(
            [[_seconds(step, count), _seconds(packed_steps[name], count)] for _ in range(rounds)]
        )
        ratios = times[:, 0] / times[:, 1]
        plain_rate, packed_rate = (count / np.median(times, axis=0)).tolist()
        rows.append(
            {
                "step": name,
                "plain_per_s": plain_rate,
                "packed_per_s": packed_rate,
                "packed_over_plain": statistics.median(ratios.tolist()),
            }
        )
    return rows


def _seconds(step: Step, count: int) -> float:
    """Return the CPU time of a pass."""
    start = time.thread_time()
    for index in range(count):
        step(index)
    return time.thread_time() - start


def _table(rows: list[dict[str, float | str]], config: Config, count: int) -> Table:
    table = Table(
        title=f"Pictures per second and core: {count} pictures, data.scale {config.data.scale}"
    )
    for column in ("step", "plain", "packed", "packed / plain"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for row in rows:
        step, *values = row.values()
        table.add_row(str(step), *(f"{value:.3g}" for value in values))
    return table


if __name__ == "__main__":
    sys.exit(main())
