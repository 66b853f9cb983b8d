"""Run the benchmark: measure the selected parts in order, and print and write their tables."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rpn_jax.benchmark import files, growth
from rpn_jax.benchmark.all_configs import config_rows
from rpn_jax.benchmark.device import measured_peaks
from rpn_jax.benchmark.figures import Row, Section, row_or_failure, rows_or_failure
from rpn_jax.benchmark.inputs import Canvas
from rpn_jax.benchmark.models import load_measured
from rpn_jax.benchmark.network import network_sections, peers_in_children
from rpn_jax.benchmark.notes import section
from rpn_jax.benchmark.options import Options, check_options
from rpn_jax.benchmark.process import NO_PREALLOCATION, import_rows, memory_row
from rpn_jax.benchmark.progress import say
from rpn_jax.benchmark.report import RESULTS_FILE, table, write_results
from rpn_jax.benchmark.timing import Effort
from rpn_jax.benchmark.training import BOXES, matching_row
from rpn_jax.config import Config, Precision, load_config, with_precision
from rpn_jax.devices import use_platform
from rpn_jax.files import make_folder
from rpn_jax.runtime import environment

if TYPE_CHECKING:
    from rpn_jax.structures import Variables


def run(options: Options) -> None:
    """Measure, print each section when it is complete, and write all of them to ``options.out``.

    A case that fails becomes a row with the column ``failed``.

    Raises:
      UserError: the options contradict each other, or the config, the folder or the device does
        not exist.
    """
    check_options(options)
    if options.peers or options.growth or options.process:
        # Child processes use the same GPU.
        for name, value in NO_PREALLOCATION.items():
            os.environ.setdefault(name, value)
    use_platform(options.platform)
    if options.weights is not None:
        options = dataclasses.replace(options, config=_folder_of(options.weights), weights=None)
    config = load_config(options.config) if options.config is not None else None
    if options.out is not None:
        make_folder(options.out)
    sections: list[Section] = []
    try:
        for item in _measurements(options, config):
            if isinstance(item, Section):
                _print_last(sections)
                sections.append(item)
            else:
                sections[-1].rows.append(item)
            if options.out is not None:
                write_results(options.out, environment(), _plain(options), sections)
    finally:  # print the last section after an interruption, too
        _print_last(sections)
    if options.out is not None:
        _plot(options)


def _folder_of(weights: str) -> str:
    """Return the folder of weights. Convert other weights into the cache folder."""
    from rpn_jax.weights.models import weights_folder  # needs more packages than the benchmark

    return str(weights_folder(weights, config=None))


def _measurements(options: Options, config: Config | None) -> Iterator[Section | Row]:
    """Yield each section without rows, and then its rows. A row is measured when it is requested.

    Without ``config`` the reference's configs are measured.
    """
    if config is None:
        yield section("configs")
        yield from config_rows(options)
        return
    assert options.config is not None
    canvas = options.canvas_of(config)
    effort = Effort(options.runs, options.seconds)
    if options.process:
        yield section("imports")
        yield from rows_or_failure({}, import_rows)
        yield section("memory")
        yield from _memory_rows(options.config, options.precisions, canvas)
    if options.matching:
        yield section("matching")
        say("matching")
        yield row_or_failure({}, partial(matching_row, config, canvas, BOXES, effort))
    inference = options.measures_inference
    if not (inference or options.train or options.growth or options.files):
        return
    parts = [train for train, wanted in ((False, inference), (True, options.train)) if wanted]
    rows_of_peers = {train: peers_in_children(options, canvas, effort, train) for train in parts}
    _, variables = load_measured(options.config)
    if parts:
        yield section("peaks")
        for precision in options.precisions:
            yield row_or_failure({"precision": precision}, partial(_peak_row, precision))
    for train in parts:
        yield from network_sections(
            options, config, variables, canvas, effort, train, rows_of_peers[train]
        )
    if options.growth:
        yield from _growth(options, config, variables, canvas, effort)
    if options.files:
        yield from _files(options, config, variables, canvas, effort)


def _memory_rows(config: str, precisions: Sequence[Precision], canvas: Canvas) -> Iterator[Row]:
    for precision in precisions:
        case = {"what": f"inference of one {canvas[0]}x{canvas[1]} picture, {precision}"}
        yield row_or_failure(case, partial(memory_row, config, precision, canvas))


def _peak_row(precision: Precision) -> Row:
    peaks = measured_peaks(precision)
    return {
        "matmul_tflops": peaks.flops_per_second / 1e12,
        "copy_gb_per_s": peaks.bytes_per_second / 1e9,
    }


def _growth(
    options: Options, config: Config, variables: Variables, canvas: Canvas, effort: Effort
) -> Iterator[Section | Row]:
    precision, largest_batch = options.precisions[0], max(options.batch_sizes)
    config = with_precision(config, precision)
    batch_sizes = growth.doubling_up_to(largest_batch)
    canvases = growth.canvases_up_to(canvas)
    assert options.config is not None
    yield section("growth")
    say("growth")
    yield from growth.batch_growth(config, variables, batch_sizes, canvas, effort)
    yield from growth.size_growth(config, variables, canvases, effort)
    yield from growth.candidate_growth(config, growth.CANDIDATES, canvas, effort)
    yield from growth.box_growth(config, growth.BOXES, canvas, effort)
    yield from growth.device_growth(
        options.config, precision, largest_batch, canvas, growth.device_counts(), effort
    )
    yield section("worst_cases")
    yield from rows_or_failure({}, partial(growth.worst_case_rows, config, canvas, effort))


def _files(
    options: Options, config: Config, variables: Variables, canvas: Canvas, effort: Effort
) -> Iterator[Section | Row]:
    missing = files.missing_packages()
    if missing:
        yield Section("files", f"Skipped: {', '.join(missing)} not installed.", [])
        return
    from rpn_jax.data.files import find_pictures

    threads = files.thread_counts()
    sized = [files.config_for_canvas(config, canvas, size) for size in options.batch_sizes]
    with files.picture_folder(options.pictures) as folder:
        pictures = find_pictures([str(folder)])
        yield section("reading")
        say("reading")
        for of_batch_size in sized:
            yield from rows_or_failure(
                {}, partial(files.reading_rows, of_batch_size, pictures, threads, effort)
            )
        yield section("files")
        for of_batch_size, precision in itertools.product(sized, options.precisions):
            say(f"files in {precision}, batch {of_batch_size.data.eval_batch_size}")
            in_precision = with_precision(of_batch_size, precision)
            yield from rows_or_failure(
                {"precision": precision},
                partial(
                    files.proposing_rows, in_precision, variables, pictures, threads[-1], effort
                ),
            )


def _print_last(sections: Sequence[Section]) -> None:
    if sections:
        print(table(sections[-1]), flush=True)


def _plot(options: Options) -> None:
    assert options.out is not None
    if find_spec("matplotlib") is None:
        print(f"No plots: Matplotlib is not installed. The results are in {options.out}.")
        return
    from rpn_jax.benchmark.plots import plot_results

    for path in plot_results(options.out / RESULTS_FILE, options.out):
        print(f"plot: {path}")


def _plain(options: Options) -> dict[str, object]:
    """Return the options as JSON values."""
    values = dataclasses.asdict(options)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
