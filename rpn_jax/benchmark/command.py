"""The command: which sections are measured, in which order; printed and kept as they come."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import sys
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from rpn_jax.benchmark import files, growth
from rpn_jax.benchmark.device import Peaks, measure_peaks
from rpn_jax.benchmark.figures import Row, Section, one_line
from rpn_jax.benchmark.inputs import Canvas
from rpn_jax.benchmark.options import Options
from rpn_jax.benchmark.process import import_rows, memory_row
from rpn_jax.benchmark.report import RESULTS_FILE, table, write_results
from rpn_jax.benchmark.stages import inference_rows, whole_row
from rpn_jax.benchmark.timing import Call, Effort
from rpn_jax.benchmark.training import BOXES, matching_row, training_rows
from rpn_jax.config import Config, config_names, load_config, with_precision
from rpn_jax.devices import use_platform
from rpn_jax.files import make_folder
from rpn_jax.models import init_variables
from rpn_jax.runtime import environment

if TYPE_CHECKING:
    from rpn_jax.ops.convolution import Precision
    from rpn_jax.structures import Variables

    Calls = defaultdict[int, defaultdict[str, dict[Precision, Call]]]
    """What was timed, by batch size, stage and precision."""

REFERENCE_SUFFIX = "_coco"
"""Ends the names of the eleven configs of the reference."""

NOTES = {
    "peaks": "What this device reached in this run: a large matrix product, and a large copy "
    "(bytes read and written).",
    "inference": "Pictures lie on the device as uint8. Post-processing and its parts work on made "
    "head outputs, 40 objects a picture; end to end they see those of random weights. Times are "
    "of one call, waited for, until results exist. memory_mb: arguments, results and temporaries "
    "of the compiled program. FLOPs are those of the network. The roofline is the larger of FLOPs "
    "over the measured matrix peak and XLA's count of bytes over the measured copy peak.",
    "training": f"Forward, matching, sampling, losses, backward and SGD of the real step, {BOXES} "
    "boxes a picture, on all devices; memory_mb and achieved_tflops are a device's. The head works "
    "at the sampled cells alone.",
    "matching": "Matching, sampling and targets of one picture's anchors.",
    "inference_peers": "PyTorch in the same run, with the same weights, pictures, anchors and "
    "sizes; its norms are not folded into its convolutions. first_call_s: compiling and the choice "
    "of algorithms. "
    "times_ours_P: its time over ours of the same stage with precision P, in turns, each after an "
    "uncounted call of its own; above 1 ours is quicker.",
    "training_peers": "PyTorch in the same run, on one device. torchvision's step has matching, "
    "sampling and its losses, but proposes nothing; plain PyTorch's has a stand-in for the loss, "
    "and neither matching nor sampling. times_ours_P: its time over ours, in turns, "
    "each after an uncounted call of its own; above 1 ours is quicker.",
    "growth": "unit_cost_to_first: cost of a unit over that of the axis's first row; 1 is linear. "
    "Batch size and megapixels: end to end. Candidates: post-processing. Boxes: matching and "
    "sampling. Devices: the training step, the batch growing with them.",
    "worst_cases": "NMS of one picture's levels.",
    "reading": "Files decoded, resized, padded and batched on the host; resize 'device': without "
    "the resizing.",
    "files": "From files to proposals on the host, against the device alone on full batches of "
    "resized pictures.",
    "imports": "In a fresh interpreter.",
    "memory": "Peaks of a process of its own that compiles inference and runs it, with weights as "
    "if they had been loaded.",
    "configs": "End to end on the device: pictures a second at the median, and memory of the "
    "compiled program; train_: the same for the training step. Schedules of one network share its "
    "figures.",
}
"""What each section's rows are."""


def run(options: Options) -> None:
    """Measure, print each section when it is done, and keep all in ``options.out``.

    Raises:
      UserError: no such config, folder or device; packages that are missing for what is asked.
    """
    if options.peers:
        # Otherwise JAX takes most of a GPU's memory, and PyTorch has to do with the rest.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    use_platform(options.platform)
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
    finally:  # after an interruption, what was measured before it
        _print_last(sections)
    if options.out is not None:
        _plot(options)


def canvas_of(options: Options, config: Config) -> Canvas:
    """The size that was asked for, or the config's largest canvas."""
    return options.size or max(config.data.buckets, key=math.prod)


def _measurements(options: Options, config: Config | None) -> Iterator[Section | Row]:
    """Each section, empty, and after it its rows, which are measured as they are asked for.

    ``config`` is that of the options; without one, those of the reference are measured.
    """
    if config is None:
        yield _section("configs")
        yield from _config_rows(options)
        return
    assert options.config is not None
    canvas = canvas_of(options, config)
    effort = Effort(options.runs, options.seconds)
    if options.process:
        yield _section("imports")
        yield from import_rows()
        yield _section("memory")
        yield from _memory_rows(options.config, options.precisions, canvas)
    if options.matching:
        yield _section("matching")
        _say("matching")
        yield matching_row(config, canvas, BOXES, effort)
    if not (options.inference or options.train or options.growth or options.files):
        return
    variables = init_variables(config)
    if options.inference or options.train:
        yield _section("peaks")
        yield from map(_peak_row, options.precisions)
    for wanted, train in ((options.inference, False), (options.train, True)):
        if wanted:
            yield from _beside_peers(options, config, variables, canvas, effort, train)
    if options.growth:
        yield from _growth(options, config, variables, canvas, effort)
    if options.files:
        yield from _files(options, config, variables, canvas, effort)


def _section(name: str) -> Section:
    return Section(name, NOTES[name], [])


def _memory_rows(config: str, precisions: Sequence[Precision], canvas: Canvas) -> Iterator[Row]:
    return (memory_row(config, precision, canvas) for precision in precisions)


@cache
def _peaks(precision: Precision) -> Peaks:
    _say(f"peaks in {precision}")
    return measure_peaks(precision)


def _peak_row(precision: Precision) -> Row:
    peaks = _peaks(precision)
    return {
        "precision": precision,
        "matmul_tflops": peaks.flops_per_second / 1e12,
        "copy_gb_per_s": peaks.bytes_per_second / 1e9,
    }


def _case(precision: Precision, batch_size: int, canvas: Canvas) -> Row:
    return {"precision": precision, "batch": batch_size, "size": f"{canvas[0]}x{canvas[1]}"}


def _beside_peers(
    options: Options,
    config: Config,
    variables: Variables,
    canvas: Canvas,
    effort: Effort,
    train: bool,
) -> Iterator[Section | Row]:
    """Inference or the training step, then peers where they are wanted; frees all calls after."""
    yield _section("training" if train else "inference")
    calls = yield from _measured(options, config, variables, canvas, effort, train)
    if options.peers:
        yield from _peers(options, config, variables, canvas, effort, train, calls)


def _measured(
    options: Options,
    config: Config,
    variables: Variables,
    canvas: Canvas,
    effort: Effort,
    train: bool,
) -> Generator[Row, None, Calls]:
    """Rows of inference or the training step in each precision and batch size.

    Returns the calls that were timed, to be timed beside peers.
    """
    calls: Calls = defaultdict(lambda: defaultdict(dict))
    what, measure = ("training", training_rows) if train else ("inference", inference_rows)
    for precision, batch_size in itertools.product(options.precisions, options.batch_sizes):
        _say(f"{what} of {config.name} in {precision}, batch {batch_size}")
        case = _case(precision, batch_size, canvas)
        of_precision = with_precision(config, precision)
        peaks = _peaks(precision)
        try:
            rows, call_of_stage = measure(
                of_precision, variables, batch_size, canvas, peaks, effort
            )
        except jax.errors.JaxRuntimeError as error:
            yield {**case, "failed": one_line(error)}
            continue
        for stage, call in call_of_stage.items():
            calls[batch_size][stage][precision] = call
        yield from ({**case, **row} for row in rows)
    return calls


def _peers(
    options: Options,
    config: Config,
    variables: Variables,
    canvas: Canvas,
    effort: Effort,
    train: bool,
    calls: Calls,
) -> Iterator[Section | Row]:
    name = "training_peers" if train else "inference_peers"
    if find_spec("torch") is None:
        yield Section(name, "Left out: torch is not installed.", [])
        return
    from rpn_jax.benchmark.peers import peer_device, peer_rows

    device = peer_device()
    if device is None:
        note = "Left out: PyTorch cannot use the device that JAX computes on."
        yield Section(name, note, [])
        return
    yield _section(name)
    for batch_size in options.batch_sizes:
        _say(f"PyTorch, batch {batch_size}")
        for row in peer_rows(
            config, variables, batch_size, canvas, train, device, effort, calls[batch_size]
        ):
            yield {"batch": batch_size, **row}


def _growth(
    options: Options, config: Config, variables: Variables, canvas: Canvas, effort: Effort
) -> Iterator[Section | Row]:
    precision, largest_batch = options.precisions[0], max(options.batch_sizes)
    config = with_precision(config, precision)
    batch_sizes = growth.doubling_up_to(largest_batch)
    canvases = growth.canvases_up_to(canvas)
    assert options.config is not None
    yield _section("growth")
    _say("growth")
    yield from growth.batch_growth(config, variables, batch_sizes, canvas, effort)
    yield from growth.size_growth(config, variables, canvases, effort)
    yield from growth.candidate_growth(config, growth.CANDIDATES, canvas, effort)
    yield from growth.box_growth(config, growth.BOXES, canvas, effort)
    yield from growth.device_growth(
        options.config, precision, largest_batch, canvas, growth.device_counts(), effort
    )
    yield _section("worst_cases")
    yield from growth.worst_case_rows(config, canvas, effort)


def _files(
    options: Options, config: Config, variables: Variables, canvas: Canvas, effort: Effort
) -> Iterator[Section | Row]:
    missing = files.missing_packages()
    if missing:
        yield Section("files", f"Left out: {', '.join(missing)} not installed.", [])
        return
    from rpn_jax.data.files import find_pictures

    threads = files.thread_counts()
    sized = [files.config_for_canvas(config, canvas, size) for size in options.batch_sizes]
    with files.picture_folder(options.pictures) as folder:
        pictures = find_pictures([str(folder)])
        yield _section("reading")
        _say("reading")
        for of_batch_size in sized:
            yield from files.reading_rows(of_batch_size, pictures, threads, effort)
        yield _section("files")
        for of_batch_size, precision in itertools.product(sized, options.precisions):
            _say(f"files in {precision}, batch {of_batch_size.data.eval_batch_size}")
            for row in files.proposing_rows(
                with_precision(of_batch_size, precision), variables, pictures, threads[-1], effort
            ):
                yield {"precision": precision, **row}


def _config_rows(options: Options) -> Iterator[Row]:
    """A row for each config of the reference, precision and batch size."""
    effort = Effort(options.runs, options.seconds)
    measured: dict[tuple[object, ...], Row] = {}
    for name in (name for name in config_names() if name.endswith(REFERENCE_SUFFIX)):
        config = load_config(name)
        canvas = canvas_of(options, config)
        for precision, batch_size in itertools.product(options.precisions, options.batch_sizes):
            key = (config.model, config.pixels, config.rpn_proposals, precision, batch_size)
            if key not in measured:
                _say(f"{name} in {precision}, batch {batch_size}")
                measured[key] = _config_figures(
                    config, precision, batch_size, canvas, options.train, effort
                )
            yield {
                "config": name,
                "backbone": backbone_name(config),
                "style": config.model.backbone.style,
                **_case(precision, batch_size, canvas),
                **measured[key],
            }


def _config_figures(
    config: Config,
    precision: Precision,
    batch_size: int,
    canvas: Canvas,
    train: bool,
    effort: Effort,
) -> Row:
    variables = _last_variables(config)
    peaks = _peaks(precision)
    config = with_precision(config, precision)
    figures: Row = {}
    try:
        whole = whole_row(config, variables, batch_size, canvas, peaks, effort)
        figures |= {
            "memory_mb": whole["memory_mb"],
            "fps": whole["pictures_per_s"],
            "gflop_per_picture": whole.get("gflop_per_picture"),
            "share_of_roofline": whole.get("share_of_roofline"),
        }
        if train:
            (step,), _ = training_rows(config, variables, batch_size, canvas, peaks, effort)
            figures["train_memory_mb"] = step["memory_mb"]
            figures["train_pictures_per_s"] = step["pictures_per_s"]
    except jax.errors.JaxRuntimeError as error:
        figures["failed"] = one_line(error)
    return figures


@lru_cache(maxsize=1)
def _last_variables(config: Config) -> Variables:
    """Random weights of the config that is being measured: made once for all its rows."""
    return init_variables(config)


def backbone_name(config: Config) -> str:
    """As in the published table: R-50-FPN, X-101-32x4d-FPN, R-50-C4."""
    backbone = config.model.backbone
    neck = "FPN" if config.model.neck == "fpn" else f"C{backbone.num_stages + 1}"
    if backbone.groups == 1:
        return f"R-{backbone.depth}-{neck}"
    return f"X-{backbone.depth}-{backbone.groups}x{backbone.base_width}d-{neck}"


def _print_last(sections: Sequence[Section]) -> None:
    if sections:
        print(table(sections[-1]), flush=True)


def _plot(options: Options) -> None:
    assert options.out is not None
    if find_spec("matplotlib") is None:
        print(f"no plots: Matplotlib is not installed; results are in {options.out}")
        return
    from rpn_jax.benchmark.plots import plot_results

    for path in plot_results(options.out / RESULTS_FILE, options.out):
        print(f"plot: {path}")


def _plain(options: Options) -> dict[str, object]:
    """The options as JSON holds them."""
    values = dataclasses.asdict(options)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def _say(what: str) -> None:
    print(f"measuring {what} ...", file=sys.stderr, flush=True)
