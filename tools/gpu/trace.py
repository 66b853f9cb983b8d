"""Section 'trace': the ten longest kernels of each program, by JAX's profiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from rpn_jax.benchmark.device import Peaks
from rpn_jax.benchmark.figures import Row
from rpn_jax.benchmark.inputs import Canvas
from rpn_jax.benchmark.stages import whole_arguments, whole_function
from rpn_jax.benchmark.timing import Effort
from rpn_jax.benchmark.training import STEP, training_rows
from rpn_jax.config import Config, load_config, with_precision
from rpn_jax.models import init_variables

SMALL_CONFIG = "rpn_demo"
CONFIG = "rpn_r50_fpn_1x_coco"
CANVAS = (800, 1344)
KERNELS = 10
NO_PEAKS = Peaks(1.0, 1.0)
"""The roofline is not used here."""
OVERHEAD = ("end: ", "$", "ThreadpoolListener", "ThunkExecutor", "TfrtCpu", "PjRt", "PjitFunction")
"""Beginnings of the names of host events that are not kernels."""


def rows(out: Path, small: bool) -> Iterator[Row]:
    """Yield the longest kernels of inference and of the training step."""
    config = load_config(SMALL_CONFIG if small else CONFIG)
    config = with_precision(config, "float32" if small else "bfloat16")
    canvas = config.data.canvases[0] if small else CANVAS
    for name, call in _programs(config, canvas, batch_size=2 if small else 16):
        jax.block_until_ready(call())
        folder = out / "traces" / name.replace(" ", "_")
        with jax.profiler.trace(str(folder)):
            jax.block_until_ready(call())
        yield from _longest(name, folder)


def _programs(
    config: Config, canvas: Canvas, batch_size: int
) -> Iterator[tuple[str, Callable[[], Any]]]:
    variables = init_variables(config)
    function = whole_function(config)
    arguments = whole_arguments(config, variables, batch_size, canvas)
    yield "inference", lambda: function(*arguments)
    effort = Effort(runs=1, seconds=0.0)
    _, calls = training_rows(config, variables, batch_size, canvas, NO_PEAKS, effort)
    yield "training_step", calls[STEP]


def _longest(program: str, folder: Path) -> Iterator[Row]:
    (path, *_) = sorted(folder.rglob("*.xplane.pb"))
    nanoseconds, calls = kernel_times(path)
    total = sum(nanoseconds.values())
    for kernel, taken in nanoseconds.most_common(KERNELS):
        yield {
            "program": program,
            "kernel": kernel[:80],
            "ms": taken / 1e6,
            "calls": calls[kernel],
            "share": taken / total,
        }


def kernel_times(path: Path) -> tuple[Counter[str], Counter[str]]:
    """Return the nanoseconds and the number of calls of each kernel in a trace.

    The kernels are the events of the GPUs' streams. A trace of a CPU has none, so there they are
    the events of XLA's threads.
    """
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    of_devices = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    lines = [
        line
        for plane in of_devices or planes
        for line in plane.lines
        if ("Stream" if of_devices else "XLA") in line.name
    ]
    nanoseconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in (event for line in lines for event in line.events):
        if not event.name.startswith(OVERHEAD):
            nanoseconds[event.name] += round(event.duration_ns)
            calls[event.name] += 1
    return nanoseconds, calls
