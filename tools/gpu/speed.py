"""Sections 'benchmark', 'configs' and 'input': how fast this package is on this device."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec

from rpn_jax.benchmark import files
from rpn_jax.benchmark.device import Peaks, measured_peaks, peaks_of
from rpn_jax.benchmark.figures import Row, one_line
from rpn_jax.benchmark.inputs import Canvas
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

CONFIG = "rpn_r50_fpn_1x_coco"
CANVAS = (800, 1344)
BATCH_SIZES = (1, 16)
PRECISIONS: tuple[Precision, ...] = ("bfloat16", "tf32", "float32")
"""The precision of the goals comes first, in case the time limit ends the section."""
EFFORT = Effort(runs=30, seconds=5.0)
SMALL_EFFORT = Effort(runs=2, seconds=2.0)
SMALL_PEAKS = (512, 2**24)
"""Side of the matrices and bytes of the array for the peaks of a small run."""


def benchmark_rows(small: bool) -> Iterator[Row]:
    """Yield inference, training and PyTorch, for each precision and batch size."""
    config = load_config(SMALL_CONFIG if small else CONFIG)
    canvas = config.data.canvases[0] if small else CANVAS
    variables = init_variables(config)
    effort = SMALL_EFFORT if small else EFFORT
    batch_sizes = (1,) if small else BATCH_SIZES
    precisions: tuple[Precision, ...] = ("float32",) if small else PRECISIONS
    for batch_size, train in itertools.product(batch_sizes, (False, True)):
        calls: defaultdict[str, dict[Precision, Call]] = defaultdict(dict)
        for precision in precisions:
            case: Row = {"program": "ours", "precision": precision, "batch": batch_size}
            measure = training_rows if train else inference_rows
            in_precision = with_precision(config, precision)
            peaks = _peaks(precision, small)
            try:
                rows, of_stage = measure(in_precision, variables, batch_size, canvas, peaks, effort)
            except Exception as error:  # the other cases are still measured
                yield {**case, "failed": one_line(error)}
                continue
            for stage, call in of_stage.items():
                calls[stage][precision] = call
            yield from ({**case, **row} for row in rows)
        yield from _peer_rows(config, variables, batch_size, canvas, train, effort, calls)


def _peer_rows(
    config: Config,
    variables: Variables,
    batch_size: int,
    canvas: Canvas,
    train: bool,
    effort: Effort,
    calls: defaultdict[str, dict[Precision, Call]],
) -> Iterator[Row]:
    if find_spec("torch") is None:
        yield {"program": "PyTorch", "note": "not installed"}
        return
    from rpn_jax.benchmark.peers import peer_device, peer_rows

    device = peer_device()
    if device is None:
        yield {"program": "PyTorch", "note": "cannot use the device that JAX computes on"}
        return
    for row in peer_rows(config, variables, batch_size, canvas, train, device, effort, calls):
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
