"""Run the benchmark: measure the selected parts in order, and print and write their tables."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from rpn_jax.benchmark import files, growth
from rpn_jax.benchmark.device import Peaks, measure_peaks
from rpn_jax.benchmark.figures import Row, Section, row_or_failure, rows_or_failure
from rpn_jax.benchmark.inputs import Canvas
from rpn_jax.benchmark.models import load_measured
from rpn_jax.benchmark.options import Options, check_options
from rpn_jax.benchmark.process import NO_PREALLOCATION, import_rows, memory_row
from rpn_jax.benchmark.report import RESULTS_FILE, table, write_results
from rpn_jax.benchmark.stages import inference_rows, whole_row
from rpn_jax.benchmark.timing import Call, Effort
from rpn_jax.benchmark.training import BOXES, matching_row, training_rows
from rpn_jax.config import Config, Precision, config_names, load_config, with_precision
from rpn_jax.devices import devices_for_batch, use_platform
from rpn_jax.files import make_folder
from rpn_jax.models import init_variables
from rpn_jax.runtime import environment

if TYPE_CHECKING:
    from rpn_jax.structures import Variables

    Calls = defaultdict[int, defaultdict[str, dict[Precision, Call]]]
    """Timed calls by batch size, stage and precision."""

REFERENCE = "rpn_*_coco"
"""Pattern of the names of the reference's eleven configs."""

NOTES = {
    "peaks": "Peak rates of this device in this run: of a large matrix product, and of a large "
    "copy (bytes read plus bytes written).",
    "inference": "The pictures are on the device, as uint8. Post-processing and its parts get "
    "generated head outputs with 40 objects per picture; 'end to end' uses the outputs of random "
    "weights. A time is that of one call until its results exist. memory_mb: arguments, results "
    "and temporaries of the compiled program. FLOPs are those of the network. "
    "share_of_roofline: the larger of FLOPs / peak rate and bytes / peak copy rate, divided by the "
    "time; left out on GPUs, where XLA does not count all bytes.",
    "training": f"Forward pass, matching, sampling, losses, backward pass and SGD, {BOXES} boxes "
    "per picture. devices: the largest number of devices that divides the batch. memory_mb and "
    "achieved_tflops are those of one device. The head is computed at the sampled cells only.",
    "matching": "Matching, sampling and targets of one picture's anchors.",
    "inference_peers": "PyTorch in the same run, with the same weights, pictures, anchors and "
    "sizes. Its norms are not folded into its convolutions. first_call_s includes compiling and "
    "autotuning. times_ours_P: PyTorch's time divided by ours for the same stage with precision "
    "P; above 1 ours is faster. On a CPU both are timed in turns, on a GPU one after the other.",
    "training_peers": "PyTorch in the same run, on one device. torchvision's step has matching, "
    "sampling and its losses, but makes no proposals. Plain PyTorch's step has a simple loss, "
    "without matching and sampling. times_ours_P: PyTorch's time divided by ours with precision "
    "P; above 1 ours is faster. On a CPU both are timed in turns, on a GPU one after the other.",
    "growth": "unit_cost_to_first: time per unit, divided by that of the axis's first row; 1 is "
    "linear growth. Batch size and megapixels: end to end. Candidates: post-processing. Boxes: "
    "matching and sampling. Devices: the training step, with the same batch on each device.",
    "worst_cases": "NMS of one picture's levels.",
    "reading": "Files decoded, resized, padded and batched on the host; with resize 'device' they "
    "are not resized.",
    "files": "From files to proposals on the host. device_pictures_per_s: the device by itself, "
    "with full batches of resized pictures.",
    "imports": "In a new interpreter.",
    "memory": "Peak memory of a new process that compiles and runs inference, with weights of the "
    "size of loaded ones.",
    "configs": "End to end on the device: fps is pictures per second at the median time, memory_mb "
    "that of the compiled program. train_: the same for the training step. Configs that differ in "
    "the schedule only share their figures.",
}
"""What the rows of each section are."""


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


def canvas_of(options: Options, config: Config) -> Canvas:
    """Return the requested size, or the config's largest canvas."""
    return options.size or max(config.data.canvases, key=math.prod)


def _measurements(options: Options, config: Config | None) -> Iterator[Section | Row]:
    """Yield each section without rows, and then its rows. A row is measured when it is requested.

    Without ``config`` the reference's configs are measured.
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
        yield from rows_or_failure({}, import_rows)
        yield _section("memory")
        yield from _memory_rows(options.config, options.precisions, canvas)
    if options.matching:
        yield _section("matching")
        _say("matching")
        yield row_or_failure({}, partial(matching_row, config, canvas, BOXES, effort))
    inference = options.measures_inference
    if not (inference or options.train or options.growth or options.files):
        return
    parts = [train for train, wanted in ((False, inference), (True, options.train)) if wanted]
    rows_of_peers = {train: _peers_in_children(options, canvas, effort, train) for train in parts}
    _, variables = load_measured(options.config)
    if parts:
        yield _section("peaks")
        for precision in options.precisions:
            yield row_or_failure({"precision": precision}, partial(_peak_row, precision))
    for train in parts:
        yield from _network_sections(
            options, config, variables, canvas, effort, train, rows_of_peers[train]
        )
    if options.growth:
        yield from _growth(options, config, variables, canvas, effort)
    if options.files:
        yield from _files(options, config, variables, canvas, effort)


def _section(name: str) -> Section:
    return Section(name, NOTES[name], [])


def _memory_rows(config: str, precisions: Sequence[Precision], canvas: Canvas) -> Iterator[Row]:
    for precision in precisions:
        case = {"what": f"inference of one {canvas[0]}x{canvas[1]} picture, {precision}"}
        yield row_or_failure(case, partial(memory_row, config, precision, canvas))


@cache
def _peaks(precision: Precision) -> Peaks:
    _say(f"peaks in {precision}")
    return measure_peaks(precision)


def _peak_row(precision: Precision) -> Row:
    peaks = _peaks(precision)
    return {
        "matmul_tflops": peaks.flops_per_second / 1e12,
        "copy_gb_per_s": peaks.bytes_per_second / 1e9,
    }


def _case(precision: Precision, batch_size: int, canvas: Canvas) -> Row:
    return {"precision": precision, "batch": batch_size, "size": f"{canvas[0]}x{canvas[1]}"}


def _network_sections(
    options: Options,
    config: Config,
    variables: Variables,
    canvas: Canvas,
    effort: Effort,
    train: bool,
    rows_of_peers: list[Row] | None,
) -> Iterator[Section | Row]:
    """Measure inference or the training step, and then PyTorch if the options ask for it.

    ``rows_of_peers`` are PyTorch's rows if they were measured earlier, see `_peers_in_children`.
    """
    yield _section("training" if train else "inference")
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
        return
    yield _section(name)
    if rows_of_peers is not None:
        yield from with_ratios(rows_of_peers, ours)
    else:
        yield from _peers_in_turns(options, config, variables, canvas, effort, train, calls)


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
        in_precision, peaks = with_precision(config, precision), _peaks(precision)
        rows, by_stage = measure(in_precision, variables, batch_size, canvas, peaks, effort)
        for stage, call in by_stage.items():
            calls[batch_size][stage][precision] = call
        return rows

    for precision, batch_size in itertools.product(options.precisions, options.batch_sizes):
        what = "training" if train else "inference"
        _say(f"{what} of {config.name} in {precision}, batch {batch_size}")
        used, present = len(devices_for_batch(batch_size)), jax.local_device_count()
        if train and used < present:
            _say(f"on {used} of {present} devices: the largest number that divides the batch")
        case = _case(precision, batch_size, canvas)
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

    for batch_size in options.batch_sizes:
        _say(f"PyTorch, batch {batch_size}")
        case = (config, variables, batch_size, canvas, train, CPU, effort, calls[batch_size])
        yield from rows_or_failure({"batch": batch_size}, partial(peer_rows, *case))


def _peers_in_children(
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
        _say(f"PyTorch {'training' if train else 'inference'}, batch {batch_size}")
        measure = partial(child_rows, options.config, batch_size, canvas, train, effort)
        rows += rows_or_failure({"batch": batch_size}, measure)
    return rows


def with_ratios(rows_of_peers: Sequence[Row], ours: Sequence[Row]) -> Iterator[Row]:
    """Add ``times_ours_P`` to PyTorch's rows: its median divided by ours, same batch and stage."""
    for row in rows_of_peers:
        ratios = {
            f"times_ours_{own['precision']}": row["median_ms"] / own["median_ms"]
            for own in ours
            if "median_ms" in row
            and "median_ms" in own
            and (own["batch"], own["stage"]) == (row["batch"], row["stage"])
        }
        yield {**row, **ratios}


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
        yield _section("reading")
        _say("reading")
        for of_batch_size in sized:
            yield from rows_or_failure(
                {}, partial(files.reading_rows, of_batch_size, pictures, threads, effort)
            )
        yield _section("files")
        for of_batch_size, precision in itertools.product(sized, options.precisions):
            _say(f"files in {precision}, batch {of_batch_size.data.eval_batch_size}")
            in_precision = with_precision(of_batch_size, precision)
            yield from rows_or_failure(
                {"precision": precision},
                partial(
                    files.proposing_rows, in_precision, variables, pictures, threads[-1], effort
                ),
            )


def _config_rows(options: Options) -> Iterator[Row]:
    """Measure each config of the reference, for each precision and batch size."""
    effort = Effort(options.runs, options.seconds)
    measured: dict[tuple[object, ...], Row] = {}
    for name in fnmatch.filter(config_names(), REFERENCE):
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
    config = with_precision(config, precision)

    def inference() -> Row:
        whole = whole_row(config, variables, batch_size, canvas, _peaks(precision), effort)
        return {
            "memory_mb": whole["memory_mb"],
            "fps": whole["pictures_per_s"],
            "gflop_per_picture": whole.get("gflop_per_picture"),
            "share_of_roofline": whole.get("share_of_roofline"),
        }

    def training() -> Row:
        (step,), _ = training_rows(config, variables, batch_size, canvas, _peaks(precision), effort)
        return {
            "train_memory_mb": step["memory_mb"],
            "train_pictures_per_s": step["pictures_per_s"],
        }

    figures = row_or_failure({}, inference)
    return {**figures, **row_or_failure({}, training)} if train else figures


@lru_cache(maxsize=1)
def _last_variables(config: Config) -> Variables:
    """Return random weights of the config that is being measured, made once for all its rows."""
    return init_variables(config)


def backbone_name(config: Config) -> str:
    """Return the backbone's name in the published table: R-50-FPN, X-101-32x4d-FPN, R-50-C4."""
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
        print(f"No plots: Matplotlib is not installed. The results are in {options.out}.")
        return
    from rpn_jax.benchmark.plots import plot_results

    for path in plot_results(options.out / RESULTS_FILE, options.out):
        print(f"plot: {path}")


def _plain(options: Options) -> dict[str, object]:
    """Return the options as JSON values."""
    values = dataclasses.asdict(options)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def _say(what: str) -> None:
    print(f"measuring {what} ...", file=sys.stderr, flush=True)
