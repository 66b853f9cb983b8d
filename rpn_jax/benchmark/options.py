"""What a run of the benchmark measures. The fields are the flags of ``rpn-jax benchmark``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rpn_jax.config import CANVAS_MULTIPLE, Config, Precision
from rpn_jax.errors import UserError


@dataclass(frozen=True)
class Options:
    """Select what to measure, with which batch sizes and precisions, and for how long."""

    config: str | None = None
    """Name of a config, path of a .py or .json file, or a folder of weights."""
    weights: str | None = None
    """Weights to measure, with their config: anything that 'evaluate' takes. Without them a CONFIG
    gets random weights."""
    all: bool = False
    """Measure all configs of the reference, in one table, instead of one CONFIG."""
    inference: bool = False
    """Inference: each stage and all stages together. This is the default part."""
    train: bool = False
    """The training step, on all devices."""
    matching: bool = False
    """Matching and sampling of one picture's anchors, with 12 boxes."""
    growth: bool = False
    """Time against batch size, picture size, candidates, boxes and devices; worst cases of NMS."""
    files: bool = False
    """Speed of reading picture files with 1, 2, 4 ... threads, and from files to proposals."""
    process: bool = False
    """Import time and peak memory, each measured in a new process."""
    peers: bool = False
    """Other libraries in the same run, if they are installed: PyTorch with or without torchvision
    for inference and training, and KerasHub's RetinaNet for inference."""
    batch_sizes: tuple[int, ...] = (1,)
    """Number of pictures in one call, over all devices."""
    size: tuple[int, int] | None = None
    """Height and width of the pictures and the canvas, in pixels. The default is the config's
    largest canvas."""
    precisions: tuple[Precision, ...] = ("float32",)
    """Precisions of the network. They replace the config's model.precision."""
    runs: int = 50
    """Number of timed calls of each program."""
    seconds: float = 60.0
    """Start no further call of a program after this many seconds."""
    pictures: Path | None = None
    """Folder of picture files for --files. The default is a folder of generated pictures."""
    out: Path | None = None
    """Folder for benchmark.json and plots."""
    platform: Literal["auto", "cpu", "gpu"] = "auto"
    """Device to compute on. 'auto' uses the one that JAX prefers."""

    @property
    def measures_inference(self) -> bool:
        """Whether inference is measured: if requested, or if no other part is."""
        other_parts = (self.train, self.matching, self.growth, self.files, self.process)
        return self.inference or not any(other_parts)

    def canvas_of(self, config: Config) -> tuple[int, int]:
        """Return the requested size, or the config's largest canvas."""
        return self.size or max(config.data.canvases, key=math.prod)


def check_options(options: Options) -> None:
    """Refuse options that contradict each other, and impossible values.

    Raises:
      UserError: names the flag, its value and the allowed values.
    """
    other_parts = (options.matching, options.growth, options.files, options.process, options.peers)
    if (options.config is not None) + (options.weights is not None) + options.all != 1:
        raise UserError("benchmark: needs a CONFIG, --weights or --all. Pass one of the three.")
    if options.all and any(other_parts):
        raise UserError("benchmark: --all measures inference and training only. Pass a CONFIG.")
    if options.peers and not (options.measures_inference or options.train):
        raise UserError("benchmark: --peers needs --inference or --train. Pass one of the two.")
    if options.pictures is not None and not options.files:
        raise UserError("benchmark: --pictures needs --files. Pass --files too.")
    check_sizes(options.batch_sizes, options.size)
    if not options.precisions:
        raise UserError("--precisions: is empty. Pass one or more of float32, tf32, bfloat16.")
    if options.runs < 1:
        raise UserError(f"--runs {options.runs}: must be 1 or more")
    if not options.seconds >= 0:
        raise UserError(f"--seconds {options.seconds}: must be 0 or more")


def check_sizes(batch_sizes: tuple[int, ...], size: tuple[int, int] | None) -> None:
    """Refuse batch sizes below 1, and sizes that are not a multiple of `CANVAS_MULTIPLE` pixels.

    Raises:
      UserError: names the flag and its value.
    """
    if not batch_sizes:
        raise UserError("--batch-sizes: is empty. Pass one or more numbers.")
    for batch_size in batch_sizes:
        if batch_size < 1:
            raise UserError(f"--batch-sizes {batch_size}: must be 1 or more")
    for side in size or ():
        if side < CANVAS_MULTIPLE or side % CANVAS_MULTIPLE:
            raise UserError(f"--size {side}: must be a multiple of {CANVAS_MULTIPLE} pixels")
