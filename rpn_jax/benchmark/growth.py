"""Cost against the size of the problem, and the worst cases of NMS."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rpn_jax.benchmark.figures import Row, timing_columns
from rpn_jax.benchmark.inputs import (
    Canvas,
    chained_boxes,
    equal_boxes,
    make_outputs,
)
from rpn_jax.benchmark.process import run_python
from rpn_jax.benchmark.stages import (
    candidates_function,
    nms_function,
    post_processing_function,
    whole_arguments,
    whole_function,
)
from rpn_jax.benchmark.timing import Effort, compile_program, time_calls
from rpn_jax.benchmark.training import matching_row
from rpn_jax.config import CANVAS_MULTIPLE, Config, replace

if TYPE_CHECKING:
    from rpn_jax.ops.convolution import Precision
    from rpn_jax.structures import Variables

CANDIDATES = (500, 1000, 2000, 4000, 8000, 12000)
BOXES = (1, 3, 10, 30, 100, 300, 1000)
CANVAS_SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the full canvas's sides."""
FAKE_DEVICES = (1, 2, 4)
"""Counts that one processor can pretend to be, to see what more devices cost."""


@dataclass(frozen=True)
class Point:
    """A measured place on an axis."""

    value: float
    """Units of the axis."""
    columns: Row


def batch_growth(
    config: Config, variables: Variables, batch_sizes: Sequence[int], canvas: Canvas, effort: Effort
) -> Iterator[Row]:
    """End to end against pictures a batch."""
    points = (
        Point(size, _end_to_end(config, variables, size, canvas, effort)) for size in batch_sizes
    )
    return growth_rows("batch size", points)


def size_growth(
    config: Config, variables: Variables, canvases: Sequence[Canvas], effort: Effort
) -> Iterator[Row]:
    """End to end of one picture against its megapixels."""
    points = (
        Point(
            canvas[0] * canvas[1] / 1e6,
            _end_to_end(config, variables, 1, canvas, effort),
        )
        for canvas in canvases
    )
    return growth_rows("megapixels", points)


def candidate_growth(
    config: Config, counts: Sequence[int], canvas: Canvas, effort: Effort
) -> Iterator[Row]:
    """Post-processing of one picture against ``proposals.nms_pre``, candidates a level."""
    outputs = make_outputs(config, 1, canvas, seed=0)
    arguments = (outputs, jnp.array([canvas], jnp.int32))

    def point(count: int) -> Point:
        proposals = replace(config.rpn_proposals, nms_pre=count)
        function = post_processing_function(replace(config, rpn_proposals=proposals))
        program = compile_program(function, *arguments)
        timing = time_calls(lambda: program.run(*arguments), effort)
        return Point(count, timing_columns(timing, 1))

    return growth_rows("candidates a level", map(point, counts))


def box_growth(
    config: Config, counts: Sequence[int], canvas: Canvas, effort: Effort
) -> Iterator[Row]:
    """Matching and sampling of one picture against its boxes."""
    points = (Point(count, matching_row(config, canvas, count, effort)) for count in counts)
    return growth_rows("boxes a picture", points)


def device_growth(
    config_name: str,
    precision: Precision,
    batch_size: int,
    canvas: Canvas,
    counts: Sequence[int],
    effort: Effort,
) -> Iterator[Row]:
    """The training step with ``batch_size`` pictures a device against devices.

    Each count is a process of its own: of the first GPUs that this one may use, or of fake CPU
    devices, which share the processor and so show what is lost, not what is gained.
    """

    def point(count: int) -> Point:
        words = ["-m", "rpn_jax.benchmark", config_name, "--train"]
        words += ["--batch-sizes", str(batch_size * count), "--precisions", precision]
        words += ["--size", *map(str, canvas), "--platform", jax.default_backend()]
        words += ["--runs", str(effort.runs), "--seconds", str(effort.seconds)]
        with TemporaryDirectory() as folder:
            run_python([*words, "--out", folder], _devices_environment(count))
            results = json.loads((Path(folder) / "benchmark.json").read_text())
        (row,) = results["sections"]["training"]["rows"]
        return Point(count, row)

    return growth_rows("devices", map(point, counts))


def growth_rows(axis: str, points: Iterable[Point]) -> Iterator[Row]:
    """Rows with the cost of a unit, and that as a multiple of the first point's.

    The multiple is 1 where growth is linear, less where a fixed cost is shared, more where it is
    steeper.
    """
    first_ms: float | None = None
    for point in points:
        unit_ms = float(point.columns["median_ms"]) / point.value
        first_ms = first_ms or unit_ms
        yield {
            "axis": axis,
            "value": point.value,
            **{key: point.columns[key] for key in ("median_ms", "p10_ms", "p90_ms", "calls")},
            "ms_per_unit": unit_ms,
            "unit_cost_to_first": unit_ms / first_ms,
        }


def worst_case_rows(config: Config, canvas: Canvas, effort: Effort) -> Iterator[Row]:
    """NMS of one picture's levels with ordinary candidates, and with the hardest ones."""
    outputs = make_outputs(config, 1, canvas, seed=0)
    found = candidates_function(config)(outputs, jnp.array([canvas], jnp.int32))
    boxes, logits, exists = found
    equal = jnp.broadcast_to(equal_boxes(boxes.shape[2]), boxes.shape)
    chained = jnp.broadcast_to(chained_boxes(boxes.shape[2]), boxes.shape)
    everywhere = jnp.ones_like(exists)
    cases = {
        "ordinary": found,
        "all boxes equal": (equal, logits, everywhere),
        "each suppresses the next": (chained, logits, everywhere),
        "no valid box": (boxes, logits, jnp.zeros_like(exists)),
    }
    program = compile_program(nms_function(config), *found)
    for name, arguments in cases.items():
        timing = time_calls(partial(program.run, *arguments), effort)
        _, kept = program.run(*arguments)
        yield {"boxes": name, **timing_columns(timing, 1), "boxes_out": int(jnp.sum(kept))}


def canvases_up_to(canvas: Canvas) -> list[Canvas]:
    """`CANVAS_SHARES` of a canvas, rounded up to what a canvas may be, each once."""

    def side(length: int, share: float) -> int:
        return -(-int(length * share) // CANVAS_MULTIPLE) * CANVAS_MULTIPLE

    height, width = canvas
    return list(dict.fromkeys((side(height, share), side(width, share)) for share in CANVAS_SHARES))


def doubling_up_to(largest: int) -> list[int]:
    """1, 2, 4 ... and ``largest``."""
    return sorted({*(2**power for power in range(largest.bit_length())), largest})


def device_counts() -> list[int]:
    """Counts of devices to try on this machine."""
    if jax.default_backend() == "cpu":
        return list(FAKE_DEVICES)
    return doubling_up_to(jax.local_device_count())


def _devices_environment(count: int) -> dict[str, str]:
    if jax.default_backend() == "cpu":
        flags = os.environ.get("XLA_FLAGS", "")
        return {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={count}".strip()}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else map(str, range(count))
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(itertools.islice(devices, count)),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }


def _end_to_end(
    config: Config, variables: Variables, batch_size: int, canvas: Canvas, effort: Effort
) -> Row:
    arguments = whole_arguments(config, variables, batch_size, canvas)
    program = compile_program(whole_function(config), *arguments)
    return timing_columns(time_calls(lambda: program.run(*arguments), effort), batch_size)
