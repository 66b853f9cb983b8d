"""Measure inference or the training step of one config, and other libraries beside it."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import jax

from rpn_jax.benchmark.device import measured_peaks
from rpn_jax.benchmark.figures import Row, Section, case_columns, rows_or_failure
from rpn_jax.benchmark.inputs import Canvas
from rpn_jax.benchmark.keras_retinanet import retinanet_rows
from rpn_jax.benchmark.notes import section
from rpn_jax.benchmark.options import Options
from rpn_jax.benchmark.progress import say
from rpn_jax.benchmark.stages import inference_rows
from rpn_jax.benchmark.timing import Call, Effort
from rpn_jax.benchmark.training import training_rows
from rpn_jax.config import Config, Precision, with_precision
from rpn_jax.devices import devices_for_batch

if TYPE_CHECKING:
    from rpn_jax.structures import Variables

    Calls = defaultdict[int, defaultdict[str, dict[Precision, Call]]]
    """Timed calls by batch size, stage and precision."""


def network_sections(
    options: Options,
    config: Config,
    variables: Variables,
    canvas: Canvas,
    effort: Effort,
    train: bool,
    rows_of_peers: list[Row] | None,
) -> Iterator[Section | Row]:
    """Measure inference or the training step, and then PyTorch if the options ask for it.

    ``rows_of_peers`` are PyTorch's rows if they were measured earlier, see `peers_in_children`.
    """
    yield section("training" if train else "inference")
    calls: Calls = defaultdict(lambda: defaultdict(dict))
    ours = []
    for row in _own_rows(options, config, variables, canvas, effort, train, calls):
        ours.append(row)
        yield row
    if not options.peers:
        return
    name = "training_peers" if train else "inference_peers"
    reason = _why_no_peers()
    if reason is not None:
        yield Section(name, f"Skipped: {reason}.", [])
    else:
        yield section(name)
        if rows_of_peers is not None:
            yield from with_ratios(rows_of_peers, ours)
        else:
            yield from _peers_in_turns(options, config, variables, canvas, effort, train, calls)
    if not train and find_spec("keras_hub") is not None:
        yield section("keras_hub")
        yield from with_ratios(_keras_rows(options, canvas, effort), ours)


def _own_rows(
    options: Options,
    config: Config,
    variables: Variables,
    canvas: Canvas,
    effort: Effort,
    train: bool,
    calls: Calls,
) -> Iterator[Row]:
    """Measure inference or the training step for each precision and batch size.

    The timed calls are added to ``calls``.
    """
    measure = training_rows if train else inference_rows

    def case_rows(precision: Precision, batch_size: int) -> Iterable[Row]:
        in_precision, peaks = with_precision(config, precision), measured_peaks(precision)
        rows, by_stage = measure(in_precision, variables, batch_size, canvas, peaks, effort)
        for stage, call in by_stage.items():
            calls[batch_size][stage][precision] = call
        return rows

    for precision, batch_size in itertools.product(options.precisions, options.batch_sizes):
        what = "training" if train else "inference"
        say(f"{what} of {config.name} in {precision}, batch {batch_size}")
        used, present = len(devices_for_batch(batch_size)), jax.local_device_count()
        if train and used < present:
            say(f"on {used} of {present} devices: the largest number that divides the batch")
        case = case_columns(precision, batch_size, canvas)
        yield from rows_or_failure(case, partial(case_rows, precision, batch_size))


def _why_no_peers() -> str | None:
    """Return the reason why PyTorch cannot be measured, None if it can."""
    if find_spec("torch") is None:
        return "torch is not installed"
    from rpn_jax.benchmark.peers import peer_device

    return None if peer_device() else "PyTorch cannot use the device that JAX computes on"


def _peers_in_turns(
    options: Options,
    config: Config,
    variables: Variables,
    canvas: Canvas,
    effort: Effort,
    train: bool,
    calls: Calls,
) -> Iterator[Row]:
    """Measure PyTorch on the CPU, in turns with our ``calls``: other load slows both."""
    from rpn_jax.benchmark.peers import CPU, peer_rows
    from rpn_jax.benchmark.torch_variants import CPU_VARIANTS

    for batch_size in options.batch_sizes:
        say(f"PyTorch, batch {batch_size}")
        case = (config, variables, batch_size, canvas, train, CPU, effort, calls[batch_size])
        measure = partial(peer_rows, *case, CPU_VARIANTS)
        yield from rows_or_failure({"batch": batch_size}, measure)


def peers_in_children(
    options: Options, canvas: Canvas, effort: Effort, train: bool
) -> list[Row] | None:
    """Measure PyTorch on a GPU, in new processes. Return None on a CPU and without PyTorch.

    This must run before JAX computes anything large: JAX keeps the memory that it has used.
    """
    if jax.default_backend() == "cpu" or not options.peers or _why_no_peers() is not None:
        return None
    from rpn_jax.benchmark.peers import child_rows

    assert options.config is not None
    rows: list[Row] = []
    for batch_size in options.batch_sizes:
        say(f"PyTorch {'training' if train else 'inference'}, batch {batch_size}")
        measure = partial(child_rows, options.config, batch_size, canvas, train, effort)
        rows += rows_or_failure({"batch": batch_size}, measure)
    return rows


def _keras_rows(options: Options, canvas: Canvas, effort: Effort) -> Iterator[Row]:
    for precision, batch_size in itertools.product(options.precisions, options.batch_sizes):
        say(f"KerasHub in {precision}, batch {batch_size}")
        measure = partial(retinanet_rows, precision, batch_size, canvas, effort)
        yield from rows_or_failure({"batch": batch_size}, measure)


def with_ratios(rows_of_peers: Iterable[Row], ours: Sequence[Row]) -> Iterator[Row]:
    """Add ``times_ours_P`` to a peer's rows: its median divided by ours, same batch and stage."""
    for row in rows_of_peers:
        ratios = {
            f"times_ours_{own['precision']}": row["median_ms"] / own["median_ms"]
            for own in ours
            if "median_ms" in row
            and "median_ms" in own
            and (own["batch"], own["stage"]) == (row["batch"], row["stage"])
        }
        yield {**row, **ratios}
