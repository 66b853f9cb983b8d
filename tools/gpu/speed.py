"""Sections 'benchmark', 'detector', 'configs' and 'input': how fast we are on this device."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rpn_jax.benchmark import files
from rpn_jax.benchmark.device import Peaks, measured_peaks, peaks_of
from rpn_jax.benchmark.figures import Row, one_line
from rpn_jax.benchmark.stages import inference_rows, whole_row
from rpn_jax.benchmark.timing import Call, Effort
from rpn_jax.benchmark.training import training_rows
from rpn_jax.config import (
    Config,
    Precision,
    config_names,
    load_config,
    with_precision,
)
from rpn_jax.models import init_variables
from rpn_jax.structures import Variables
from tools.gpu.trace import SMALL_CONFIG

if TYPE_CHECKING:
    from rpn_jax.benchmark.torch_variants import Variant

    OurCalls = dict[str, dict[Precision, Call]]
    """Calls of this package, by stage and precision."""

CONFIG = "rpn_r50_fpn_1x_coco"
DETECTOR, SMALL_DETECTOR = "faster-rcnn_r50_fpn_1x_coco", "faster-rcnn_demo"
CANVAS = (800, 1344)
GOAL_PROGRAMS = ((1, False), (16, False), (16, True))
"""Batch size, and whether it is the training step."""
PROGRAMS = (*GOAL_PROGRAMS, (1, True))
SMALL_PROGRAMS = ((1, False), (1, True))
PRECISIONS: tuple[Precision, ...] = ("bfloat16", "tf32", "float32")
GOAL_VARIANTS = ((1, False, "eager float32"), (16, False, "compile bfloat16 channels_last"))
"""Batch size, whether it is the training step, and variant of PyTorch that a goal names."""
EFFORT = Effort(runs=30, seconds=1.0)
SMALL_EFFORT = Effort(runs=2, seconds=2.0)
SMALL_PEAKS = (512, 2**24)
"""Side of the matrices and bytes of the array for the peaks of a small run."""


def benchmark_rows(config_name: str, small: bool) -> Iterator[Row]:
    """Yield inference, training and PyTorch, the figures of the goals first.

    Those are `GOAL_PROGRAMS` in bfloat16, and the variants of PyTorch in `GOAL_VARIANTS`. The
    column ``times_ours_P`` compares a variant with our programs that were measured before it.
    """
    config = load_config(config_name)
    benchmark = _Benchmark(config, init_variables(config), small)
    first, *others = ("float32",) if small else PRECISIONS
    programs = SMALL_PROGRAMS if small else PROGRAMS
    of_goals = [program for program in programs if small or program in GOAL_PROGRAMS]
    rest = [program for program in programs if program not in of_goals]
    variants = _peer_variants()
    if variants is None:
        yield {"program": "PyTorch", "note": "not installed, or cannot use the device of JAX"}
    peers = [(*program, variant) for program in programs for variant in variants or ()]
    for program in of_goals:
        yield from benchmark.our_rows(*program, first)
    for batch_size, train, variant in peers:
        if (batch_size, train, variant.name) in GOAL_VARIANTS:
            yield from benchmark.peer_rows(batch_size, train, variant)
    for program in rest:
        yield from benchmark.our_rows(*program, first)
    for precision, program in itertools.product(others, programs):
        yield from benchmark.our_rows(*program, precision)
    for batch_size, train, variant in peers:
        if (batch_size, train, variant.name) not in GOAL_VARIANTS:
            yield from benchmark.peer_rows(batch_size, train, variant)


def _peer_variants() -> Sequence[Variant] | None:
    """Return the variants of PyTorch for this device, None if PyTorch cannot be measured."""
    if find_spec("torch") is None:
        return None
    from rpn_jax.benchmark.peers import peer_device
    from rpn_jax.benchmark.torch_variants import CPU_VARIANTS, CUDA_VARIANTS

    device = peer_device()
    if device is None:
        return None
    return CUDA_VARIANTS if device.type == "cuda" else CPU_VARIANTS


class _Benchmark:
    """A network that is measured, and our programs of it that were measured already."""

    def __init__(self, config: Config, variables: Variables, small: bool) -> None:
        self._config, self._variables, self._small = config, variables, small
        self._canvas = config.data.canvases[0] if small else CANVAS
        self._effort = SMALL_EFFORT if small else EFFORT
        self._calls: defaultdict[tuple[int, bool], OurCalls] = defaultdict(dict)

    def our_rows(self, batch_size: int, train: bool, precision: Precision) -> Iterator[Row]:
        """Measure a program, and keep its calls."""
        case: Row = {"program": "ours", "precision": precision, "batch": batch_size}
        measure = training_rows if train else inference_rows
        config, peaks = with_precision(self._config, precision), _peaks(precision, self._small)
        try:
            rows, of_stage = measure(
                config, self._variables, batch_size, self._canvas, peaks, self._effort
            )
        except Exception as error:  # the other programs are still measured
            yield {**case, "failed": one_line(error)}
            return
        for stage, call in of_stage.items():
            self._calls[batch_size, train].setdefault(stage, {})[precision] = call
        yield from ({**case, **row} for row in rows)

    def peer_rows(self, batch_size: int, train: bool, variant: Variant) -> Iterator[Row]:
        """Measure a variant of PyTorch, in turns with the calls of the same program."""
        from rpn_jax.benchmark.peers import peer_device, peer_rows

        device, calls = peer_device(), self._calls[batch_size, train]
        assert device is not None
        case = (self._config, self._variables, batch_size, self._canvas, train, device)
        for row in peer_rows(*case, self._effort, calls, [variant]):
            yield {"program": row.pop("peer"), "batch": batch_size, **row}


def config_rows(small: bool) -> Iterator[Row]:
    """Yield pictures per second of each config; schedules of one network share a row."""
    effort = SMALL_EFFORT if small else EFFORT
    names = [SMALL_CONFIG] if small else [n for n in config_names() if n.endswith("_coco")]
    precisions: tuple[Precision, ...] = ("float32",) if small else ("bfloat16",)
    seen = set()
    for name, precision in itertools.product(names, precisions):
        config = load_config(name)
        network = (config.model, config.rpn_proposals, precision)
        if network in seen:
            continue
        seen.add(network)
        canvas = config.data.canvases[0] if small else CANVAS
        case: Row = {"config": name, "precision": precision, "batch": 1}
        try:
            row = whole_row(
                with_precision(config, precision),
                init_variables(config),
                1,
                canvas,
                _peaks(precision, small),
                effort,
            )
        except Exception as error:  # the other configs are still measured
            yield {**case, "failed": one_line(error)}
            continue
        columns = ("pictures_per_s", "median_ms", "memory_mb", "compile_s")
        yield {**case, **{column: row.get(column) for column in columns}}


def input_rows(small: bool) -> Iterator[Row]:
    """Yield the rate of reading JPEG files, and of files to proposals."""
    from rpn_jax.data.files import find_pictures

    config = load_config(SMALL_CONFIG if small else CONFIG)
    canvas = config.data.canvases[0] if small else CANVAS
    effort = Effort(runs=1, seconds=1.0) if small else Effort(runs=3, seconds=10.0)
    config = files.config_for_canvas(config, canvas, 2 if small else 16)
    threads = files.thread_counts()[-1:]
    measures: tuple[tuple[str, Callable[..., Iterator[Row]]], ...] = (
        ("read", lambda pictures: files.reading_rows(config, pictures, threads, effort)),
        (
            "propose",
            lambda pictures: files.proposing_rows(
                with_precision(config, "float32" if small else "bfloat16"),
                init_variables(config),
                pictures,
                threads[0],
                effort,
            ),
        ),
    )
    with files.picture_folder(None) as folder:
        pictures = find_pictures([str(folder)])
        for work, measure in measures:
            for row in measure(pictures):
                yield {"work": work, **row}


@cache
def _peaks(precision: Precision, small: bool) -> Peaks:
    return peaks_of(precision, *SMALL_PEAKS) if small else measured_peaks(precision)
