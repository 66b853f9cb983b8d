"""Compile programs, and measure the time of their calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from rpn_jax.devices import cpu_device

WARM_UP_CALLS = 2

Call = Callable[[], Any]
"""A compiled program with its arguments. It returns JAX arrays."""


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated calls."""

    median: float
    p10: float
    """10th percentile, as `numpy.percentile` computes it (linear interpolation)."""
    p90: float
    """90th percentile."""
    calls: int


@dataclass(frozen=True)
class Effort:
    """Limits of the repeated calls of one program."""

    runs: int
    """Maximum number of timed calls."""
    seconds: float
    """Start no further call after this many seconds."""


@dataclass(frozen=True)
class Program:
    """A compiled function with the compiler's figures for it."""

    run: jax.stages.Compiled
    """The compiled function."""
    compile_seconds: float
    """Time of lowering and compiling. Programs from JAX's persistent cache would be faster, so
    `command.run` does not enable it."""
    flops: float | None
    """Floating-point operations of one call, from `count_flops`. Padding is not counted, and the
    body of a loop counts once."""
    bytes_accessed: float | None
    """Bytes of one call, by XLA's cost analysis of the compiled program. None on GPUs: there the
    analysis does not count the calls of cuDNN and cuBLAS, which is most of the work."""
    memory_bytes: int | None
    """Arguments, results and temporaries on the device. None if the compiler does not say."""


def summarize(seconds: Sequence[float]) -> Timing:
    """Return the figures of one or more calls."""
    p10, median, p90 = np.percentile(seconds, (10, 50, 90))
    return Timing(float(median), float(p10), float(p90), len(seconds))


def time_calls(call: Call, effort: Effort) -> Timing:
    """Time calls after `WARM_UP_CALLS` untimed ones, each until the arrays that it returns exist.

    The returned arrays must depend on all work of the call.
    """
    return repeat(lambda: seconds_until_ready(call), effort)


def seconds_until_ready(call: Call) -> float:
    """Return the seconds from the start of a call until the JAX arrays that it returns exist."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def median_ratio(
    timed_call: Callable[[], float], other_timed_call: Callable[[], float], effort: Effort
) -> float:
    """Return the median of the first call's time divided by the second's, timed in turns.

    Other load on the machine then slows both. Each is called twice and the second time counts,
    because the first call finds the other program's data in the caches.
    """

    def second_time(timed_call: Callable[[], float]) -> float:
        timed_call()
        return timed_call()

    ratios = _collect(lambda: second_time(timed_call) / second_time(other_timed_call), effort)
    return float(np.median(ratios))


def repeat(timed_call: Callable[[], float], effort: Effort) -> Timing:
    """Return the figures of a call that returns its own seconds, after `WARM_UP_CALLS` calls."""
    for _ in range(WARM_UP_CALLS):
        timed_call()
    return summarize(_collect(timed_call, effort))


def _collect(measure: Callable[[], float], effort: Effort) -> list[float]:
    end = time.perf_counter() + effort.seconds
    taken = [measure()]
    while len(taken) < effort.runs and time.perf_counter() < end:
        taken.append(measure())
    return taken


def compile_program(
    function: jax.stages.Wrapped, *arguments: Any, flops: float | None = None
) -> Program:
    """Lower and compile a jitted (or `pmap`-ed) function for the shapes of these arguments.

    ``flops`` is the number of its operations, see `count_flops`.
    """
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    on_cpu = jax.default_backend() == "cpu"
    return Program(
        run=compiled,
        compile_seconds=compile_seconds,
        flops=flops,
        bytes_accessed=(compiled.cost_analysis() or {}).get("bytes accessed") if on_cpu else None,
        memory_bytes=_memory_bytes(compiled),
    )


def count_flops(function: jax.stages.Wrapped, *arguments: Any) -> float | None:
    """Return the operations of a jitted function, by XLA's cost analysis of its form for GPUs.

    Its form for CPUs has loops of matrix products, of which the analysis counts one iteration, and
    products with zeros between groups of channels. The analysis runs on the CPU backend, because
    only that one analyses programs before they are compiled.

    Returns:
      None if JAX runs without the CPU backend.
    """
    cpu = cpu_device()
    if cpu is None:
        return None
    # Use shapes: arrays would compile the program for the device that holds them.
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    with jax.default_device(cpu):
        lowered = function.trace(*shapes).lower(lowering_platforms=("cuda",))
    return float(lowered.cost_analysis()["flops"])


def _memory_bytes(compiled: jax.stages.Compiled) -> int | None:
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
