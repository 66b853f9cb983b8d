"""Measure how fast picture files are read, and how fast they become proposals."""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, get_args

from rpn_jax.benchmark.figures import Row, timing_columns
from rpn_jax.benchmark.inputs import Canvas, make_pictures
from rpn_jax.benchmark.stages import (
    CALLS_IN_FLIGHT,
    time_in_flight,
    whole_arguments,
    whole_function,
)
from rpn_jax.benchmark.timing import Effort, compile_program, repeat
from rpn_jax.config import Config, Resize, replace
from rpn_jax.inference.batches import on_all_devices, run_dataset
from rpn_jax.inference.forward import prepare_variables
from rpn_jax.inference.proposer import ProposeFunction, make_propose_function
from rpn_jax.inference.results import picture_proposals
from rpn_jax.runtime import cpu_cores

if TYPE_CHECKING:
    from rpn_jax.data.files import PictureFiles
    from rpn_jax.structures import Variables

PACKAGES = ("cv2", "grain", "PIL")
"""Packages that reading picture files needs."""

MADE_FILES = 32
MADE_SIZE = (480, 640)
"""(height, width) in pixels: the most common size in COCO."""
JPEG_QUALITY = 90
PICTURES_PER_THREAD = 64
"""Pictures per thread: so many that the start of the threads takes a negligible time."""
RESIZE: tuple[Resize, ...] = get_args(Resize)


def missing_packages() -> list[str]:
    """Return those of `PACKAGES` that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


@contextmanager
def picture_folder(chosen: Path | None) -> Iterator[Path]:
    """Yield the chosen folder, or a temporary folder of generated JPEG files."""
    if chosen is not None:
        yield chosen
        return
    import cv2

    with TemporaryDirectory() as name:
        pictures = make_pictures(MADE_FILES, MADE_SIZE, seed=0)
        for number, picture in enumerate(pictures):
            path = Path(name) / f"{number:03}.jpg"
            _, encoded = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
            path.write_bytes(encoded.tobytes())
        yield Path(name)


def thread_counts() -> list[int]:
    """Return 1, 2, 4 ... up to the number of CPU cores."""
    cores = cpu_cores()
    return [2**power for power in range(cores.bit_length())]


def reading_rows(
    config: Config, files: list[Path], threads: list[int], effort: Effort
) -> Iterator[Row]:
    """Measure decoding, resizing, padding and batching, for each number of loader threads.

    With resize 'host' the pictures are resized. With 'device' the batches have the originals.
    """
    for resize, count in itertools.product(RESIZE, threads):
        yield _reading_row(_read_by(config, count, resize), files, effort)


def proposing_rows(
    config: Config, variables: Variables, files: list[Path], threads: int, effort: Effort
) -> Iterator[Row]:
    """Measure files to proposals on the host, with pictures resized on the host or on the device.

    Each row also has the rate of the device by itself, with full batches of resized pictures.
    ``config.data`` must have one canvas for all files. Otherwise the two rates are not comparable.
    """
    from rpn_jax.data.files import PictureFiles

    batch_size, canvas = config.data.eval_batch_size, config.data.canvases[0]
    dataset = PictureFiles(_many(files, threads * PICTURES_PER_THREAD))
    prepared = prepare_variables(config, variables, on_all_devices())
    function = make_propose_function(config)
    arguments = whole_arguments(config, variables, batch_size, canvas)
    program = compile_program(whole_function(config), *arguments)
    alone = time_in_flight(partial(program.run, *arguments), effort)
    device_rate = CALLS_IN_FLIGHT * batch_size / alone.median
    for resize in RESIZE:
        yield _proposing_row(
            _read_by(config, threads, resize), function, prepared, dataset, device_rate, effort
        )


def config_for_canvas(config: Config, canvas: Canvas, batch_size: int) -> Config:
    """Return ``config`` with pictures resized to fit this canvas, landscape or portrait."""
    data = replace(
        config.data,
        scale=(max(canvas), min(canvas)),
        buckets=(canvas, canvas[::-1]),
        eval_batch_size=batch_size,
    )
    return replace(config, data=data)


def _proposing_row(
    config: Config,
    function: ProposeFunction,
    prepared: Variables,
    dataset: PictureFiles,
    device_rate: float,
    effort: Effort,
) -> Row:
    def one_pass() -> float:
        start = time.perf_counter()
        for _ in run_dataset(function, prepared, dataset, config, picture_proposals):
            pass
        return time.perf_counter() - start

    timing = repeat(one_pass, effort)
    pictures = len(dataset.pictures)
    return {
        "resize": config.data.resize,
        "threads": config.data.loader_threads,
        "batch": config.data.eval_batch_size,
        "pictures": pictures,
        **timing_columns(timing, pictures),
        "device_pictures_per_s": device_rate,
        "share_of_device": pictures / timing.median / device_rate,
    }


def _reading_row(config: Config, files: list[Path], effort: Effort) -> Row:
    from rpn_jax.data.files import PictureFiles
    from rpn_jax.data.pipeline import eval_batches

    threads = config.data.loader_threads
    dataset = PictureFiles(_many(files, threads * PICTURES_PER_THREAD))

    def one_pass() -> float:
        start = time.perf_counter()
        for _ in eval_batches(dataset, config.data):
            pass
        return time.perf_counter() - start

    timing = repeat(one_pass, effort)
    pictures = len(dataset.pictures)
    return {
        "resize": config.data.resize,
        "threads": threads,
        "batch": config.data.eval_batch_size,
        "pictures": pictures,
        **timing_columns(timing, pictures),
    }


def _read_by(config: Config, threads: int, resize: Resize) -> Config:
    return replace(config, data=replace(config.data, loader_threads=threads, resize=resize))


def _many(files: list[Path], count: int) -> list[Path]:
    """Repeat the list of files until it has at least ``count`` entries."""
    return files * -(-count // len(files))
