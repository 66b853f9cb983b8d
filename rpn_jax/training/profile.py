"""Record a trace of some training steps with JAX's profiler."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from pathlib import Path

import jax
from rich.console import Console

from rpn_jax.console import say
from rpn_jax.structures import Batch

PROFILE_FOLDER = "profile"
FIRST_STEP = 2
"""Steps before the trace. The first ones also allocate memory."""
STEPS_IN_FLIGHT = 1
"""When a batch is asked for, so many earlier steps may still run on the devices."""


def profiled(
    batches: Iterator[Batch], folder: Path, steps: int, console: Console
) -> Generator[Batch, None, None]:
    """Yield the batches, and record a trace of ``steps`` steps.

    Args:
      batches: batches of a training run. A batch is asked for when its step begins.
      folder: folder to write the trace to. TensorBoard and Perfetto show it.
      steps: number of steps to record.
      console: console to print the folder to.
    """
    yield from itertools.islice(batches, FIRST_STEP)
    jax.profiler.start_trace(folder)
    try:
        yield from itertools.islice(batches, steps + STEPS_IN_FLIGHT)
    finally:  # The run can end before the last step of the trace.
        jax.profiler.stop_trace()
        say(console, f"a trace of {steps} steps is in {folder}")
    yield from batches
