"""Compile, run, wait, repeat: what every figure of time comes from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

WARM_UP_CALLS = 2

Call = Callable[[], Any]
"""Work of this package that is compiled and has its arguments; it returns JAX arrays."""


@dataclass(frozen=True)
class Timing:
    """Seconds that calls of the same work took."""

    median: float
    p10: float
    """A tenth of the calls were quicker (linear between neighbours, as `numpy.percentile`)."""
    p90: float
    """A tenth were slower."""
    calls: int


@dataclass(frozen=True)
class Effort:
    """How long a figure is measured."""

    runs: int
    """Timed calls."""
    seconds: float
    """No further call is begun after this long."""


@dataclass(frozen=True)
class Program:
    """A compiled function, and what the compiler says of it."""

    run: jax.stages.Compiled
    """The function."""
    compile_seconds: float
    """Lowering included; no cache of compiled programs is used."""
    flops: float | None
    """Of one call, by `count_flops`: padding is not counted, and the body of a loop counts once."""
    bytes_accessed: float | None
    """Of one call, by XLA's cost analysis of the program as it was compiled."""
    memory_bytes: int | None
    """Arguments, results and temporaries on the device. None, as above, where the compiler does
    not tell."""


def summarize(seconds: Sequence[float]) -> Timing:
    """The figures of one or more calls."""
    p10, median, p90 = np.percentile(seconds, (10, 50, 90))
    return Timing(float(median), float(p10), float(p90), len(seconds))


def time_calls(call: Call, effort: Effort) -> Timing:
    """Time calls, after `WARM_UP_CALLS` that are not, each until the JAX arrays it returns exist.

    What a call returns must depend on all of its work.
    """
    return repeat(lambda: seconds_until_ready(call), effort)


def seconds_until_ready(call: Call) -> float:
    """Seconds from a call to the existence of the JAX arrays that it returns."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def median_ratio(
    timed_call: Callable[[], float], other_timed_call: Callable[[], float], effort: Effort
) -> float:
    """How many times as long the first takes, both in turns: a slower machine slows both.

    Each is called twice and its second time counts: the first finds the other's data in the caches.
    """

    def second_time(timed_call: Callable[[], float]) -> float:
        timed_call()
        return timed_call()

    ratios = _collect(lambda: second_time(timed_call) / second_time(other_timed_call), effort)
    return float(np.median(ratios))


def repeat(timed_call: Callable[[], float], effort: Effort) -> Timing:
    """The figures of a call that tells the seconds it took, after `WARM_UP_CALLS` of it."""
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
    """Lower and compile a jitted (or `pmap`-ed) function for such arguments.

    ``flops`` are its operations, see `count_flops`.
    """
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    return Program(
        run=compiled,
        compile_seconds=compile_seconds,
        flops=flops,
        bytes_accessed=(compiled.cost_analysis() or {}).get("bytes accessed"),
        memory_bytes=_memory_bytes(compiled),
    )


def count_flops(function: jax.stages.Wrapped, *arguments: Any) -> float | None:
    """Operations of a jitted function, by XLA's cost analysis of it as written for a GPU.

    As written for a CPU it has loops of matrix products, of which the analysis counts one round,
    and products with zeros between groups of channels. The analysis itself is the CPU backend's,
    which alone knows programs that are not compiled; None where JAX was started without it.
    """
    try:
        cpu, *_ = jax.local_devices(backend="cpu")
    except RuntimeError:
        return None
    # Arrays would tie the program to the device that they lie on.
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
