"""The words of ``rpn-jax benchmark``, read with the standard library alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar, get_args, get_type_hints

from rpn_jax.config import CANVAS_MULTIPLE, ModelConfig
from rpn_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from rpn_jax.ops.convolution import Precision

DESCRIPTION = """\
Time an RPN on this device, with pictures that lie on the device as uint8, and proposals out.
Compilation is timed apart. Without --train, --matching, --growth, --files or --process, inference
is measured; --inference adds it to those."""

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Options:
    """What to measure."""

    config: str | None
    """Name or path of a config; None with ``all``."""
    all: bool
    """A table of the eleven configs of the reference instead of one config."""
    inference: bool
    """Inference, its stages apart and together."""
    train: bool
    """The training step."""
    matching: bool
    """Matching and sampling of one picture."""
    growth: bool
    """Cost against sizes and counts, and the worst cases of NMS."""
    files: bool
    """From picture files."""
    process: bool
    """Import time and peak memory, each in a process of its own."""
    peers: bool
    """PyTorch beside inference and training."""
    batch_sizes: tuple[int, ...]
    """Pictures a call."""
    size: tuple[int, int] | None
    """(height, width) of pictures and canvas, pixels; None takes the config's largest canvas."""
    precisions: tuple[Precision, ...]
    """Arithmetic of the network."""
    runs: int
    """Timed calls of each figure."""
    seconds: float
    """No further calls of a figure are begun after this long."""
    pictures: Path | None
    """Folder of picture files for ``files``; None makes some."""
    out: Path | None
    """Folder for the results as JSON, and for plots."""
    platform: str
    """'auto', 'cpu' or 'gpu'."""


class OneLineParser(argparse.ArgumentParser):
    """Tells what is wrong with the words as this package does, in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"benchmark: {message}")


def parse_options(words: Sequence[str], program: str) -> Options:
    """Read the words after the verb.

    Raises:
      UserError: anything wrong with them.
      SystemExit: after printing help.
    """
    parser = _parser(program)
    values, rest = parser.parse_known_args(words)
    if rest:
        known = [word for word in parser.format_usage().split() if word.startswith("[--")]
        flags = [word.strip("[]") for word in known]
        raise UserError(f"benchmark: unknown word '{rest[0]}'{nearest(rest[0], flags)}")
    if (values.config is not None) == values.all:
        raise UserError("benchmark: name one CONFIG, or pass --all for the eleven of the reference")
    other_parts = (values.matching, values.growth, values.files, values.process)
    if values.all and any((*other_parts, values.peers)):
        raise UserError("benchmark: --all measures inference and, with --train, training only")
    values.inference = values.inference or not any((*other_parts, values.train))
    if values.peers and not (values.inference or values.train):
        raise UserError("benchmark: --peers stand beside --inference or --train; pass one of them")
    if values.pictures is not None and not values.files:
        raise UserError("benchmark: --pictures are for --files; pass that too")
    values.batch_sizes = tuple(values.batch_sizes)
    values.precisions = tuple(values.precisions)
    values.size = values.size and tuple(values.size)
    return Options(**vars(values))


def _parser(program: str) -> argparse.ArgumentParser:
    parser = OneLineParser(prog=program, description=DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add("config", nargs="?", metavar="CONFIG", help="config, a name or the path of a file")
    for flag, meaning in (
        ("--all", "a table of the eleven configs of the reference instead of one CONFIG"),
        ("--inference", "inference: its stages apart and together"),
        ("--train", "the training step, on all devices"),
        ("--matching", "matching and sampling of one picture's anchors, with 12 boxes"),
        ("--growth", "cost against batch, picture size, candidates, boxes, devices; worst cases"),
        ("--files", "from picture files: reading at 1, 2, 4 ... threads, and end to end"),
        ("--process", "import time and peak memory, each in a process of its own"),
        ("--peers", "PyTorch beside inference and training, in the same run"),
    ):
        add(flag, action="store_true", help=meaning)
    precisions = get_args(get_type_hints(ModelConfig)["precision"])
    positive = at_least(int, 1)
    side = at_least(int, CANVAS_MULTIPLE, multiple_of=CANVAS_MULTIPLE)
    add("--batch-sizes", nargs="+", type=positive, default=[1], help="pictures a call (default 1)")
    add(
        "--size",
        nargs=2,
        type=side,
        metavar=("HEIGHT", "WIDTH"),
        help="pictures and canvas, pixels (default: the config's largest canvas)",
    )
    add(
        "--precisions",
        nargs="+",
        choices=precisions,
        default=["float32"],
        help="arithmetic of the network (default float32)",
    )
    add("--runs", type=positive, default=50, help="timed calls of each figure (default 50)")
    add(
        "--seconds",
        type=at_least(float, 0),
        default=60.0,
        help="begin no further calls of a figure after this long (default 60)",
    )
    add("--pictures", type=Path, help="folder of picture files for --files (default: made ones)")
    add("--out", type=Path, help="folder for benchmark.json and plots")
    add("--platform", choices=("auto", "cpu", "gpu"), default="auto", help="device to compute on")
    return parser


def at_least(
    number: type[Number], lowest: int, multiple_of: int | None = None
) -> Callable[[str], Number]:
    """A reader of numbers for argparse, which refuses lower ones and what is no multiple."""
    wanted = f"{lowest} or more" + (f", in multiples of {multiple_of}" if multiple_of else "")

    def read(word: str) -> Number:
        try:
            value = number(word)
        except ValueError:
            value = None
        if value is None or not value >= lowest or (multiple_of and value % multiple_of):
            kind = "a whole number" if number is int else "a number"
            raise argparse.ArgumentTypeError(f"'{word}' must be {kind}, {wanted}")
        return value

    return read
