"""Time against the size of the problem, and the worst cases of NMS."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from rpn_jax.benchmark.figures import Row, row_or_failure, timing_columns
from rpn_jax.benchmark.inputs import Canvas, chained_boxes, equal_boxes, make_outputs
from rpn_jax.benchmark.models import load_measured
from rpn_jax.benchmark.process import NO_PREALLOCATION, answer, ask_child
from rpn_jax.benchmark.stages import (
    candidates_function,
    nms_function,
    post_processing_function,
    whole_arguments,
    whole_function,
)
from rpn_jax.benchmark.timing import Effort, compile_program, time_calls
from rpn_jax.benchmark.training import matching_row, time_training
from rpn_jax.config import (
    CANVAS_MULTIPLE,
    Config,
    Precision,
    replace,
    with_precision,
)

if TYPE_CHECKING:
    from rpn_jax.structures import Variables

CANDIDATES = (500, 1000, 2000, 4000, 8000, 12000)
BOXES = (1, 3, 10, 30, 100, 300, 1000)
CANVAS_SHARES = (0.25, 0.5, 0.75, 1.0)
"""Height and width as shares of the full canvas's."""
FAKE_DEVICES = (1, 2, 4)
"""Numbers of simulated CPU devices. They share the processor, so only the loss shows."""
TIME_COLUMNS = ("median_ms", "p10_ms", "p90_ms", "calls")


def batch_growth(
    config: Config, variables: Variables, batch_sizes: Sequence[int], canvas: Canvas, effort: Effort
) -> Iterator[Row]:
    """Measure all stages together against the number of pictures in a batch."""

    def measure(size: float) -> Row:
        return _end_to_end(config, variables, int(size), canvas, effort)

    return growth_rows("batch size", batch_sizes, measure)


def size_growth(
    config: Config, variables: Variables, canvases: Sequence[Canvas], effort: Effort
) -> Iterator[Row]:
    """Measure all stages of one picture against its megapixels."""
    by_megapixels = {canvas[0] * canvas[1] / 1e6: canvas for canvas in canvases}

    def measure(megapixels: float) -> Row:
        return _end_to_end(config, variables, 1, by_megapixels[megapixels], effort)

    return growth_rows("megapixels", list(by_megapixels), measure)


def candidate_growth(
    config: Config, counts: Sequence[int], canvas: Canvas, effort: Effort
) -> Iterator[Row]:
    """Measure post-processing of one picture against ``nms_pre``, the candidates of each level.

    A level has at most as many candidates as anchors, so the highest number is that of the largest
    level.
    """
    outputs = make_outputs(config, 1, canvas, seed=0)
    largest = max(level.size for level in outputs.objectness)
    counts = sorted({min(count, largest) for count in counts})
    arguments = (outputs, jnp.array([canvas], jnp.int32))

    def measure(count: float) -> Row:
        proposals = replace(config.rpn_proposals, nms_pre=int(count))
        function = post_processing_function(replace(config, rpn_proposals=proposals))
        program = compile_program(function, *arguments)
        return timing_columns(time_calls(lambda: program.run(*arguments), effort), 1)

    return growth_rows("candidates per level", counts, measure)


def box_growth(
    config: Config, counts: Sequence[int], canvas: Canvas, effort: Effort
) -> Iterator[Row]:
    """Measure matching and sampling of one picture against its number of boxes."""

    def measure(count: float) -> Row:
        return matching_row(config, canvas, int(count), effort)

    return growth_rows("boxes per picture", counts, measure)


def device_growth(
    config_name: str,
    precision: Precision,
    batch_size: int,
    canvas: Canvas,
    counts: Sequence[int],
    effort: Effort,
) -> Iterator[Row]:
    """Measure the training step, with ``batch_size`` pictures per device, against devices.

    Each number of devices is measured in a new process. It sees the first GPUs that this process
    may use, or simulated CPU devices.
    """

    def measure(count: float) -> Row:
        request = {
            "config": config_name,
            "precision": precision,
            "batch_size": batch_size * int(count),
            "canvas": canvas,
            "effort": asdict(effort),
        }
        return ask_child(__name__, request, _devices_environment(int(count)))

    return growth_rows("devices", counts, measure)


def growth_rows(
    axis: str, values: Sequence[float], measure: Callable[[float], Row]
) -> Iterator[Row]:
    """Yield a row for each value of an axis, with its time per unit.

    ``unit_cost_to_first`` is that time divided by the first row's. It is 1 if the time is
    proportional to the value, below 1 if a fixed cost is shared, and above 1 if growth is steeper.
    """
    first_ms: float | None = None
    for value in values:
        row = row_or_failure({"axis": axis, "value": value}, partial(measure, value))
        if "failed" in row:
            yield row
            continue
        unit_ms = row["median_ms"] / value
        first_ms = first_ms or unit_ms
        columns = {key: row[key] for key in ("axis", "value", *TIME_COLUMNS)}
        yield {**columns, "ms_per_unit": unit_ms, "unit_cost_to_first": unit_ms / first_ms}


def worst_case_rows(config: Config, canvas: Canvas, effort: Effort) -> Iterator[Row]:
    """Measure NMS of one picture's levels with ordinary candidates and with the hardest ones."""
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
    """Return `CANVAS_SHARES` of a canvas, rounded up to allowed sizes, without repeats."""

    def side(length: int, share: float) -> int:
        return -(-int(length * share) // CANVAS_MULTIPLE) * CANVAS_MULTIPLE

    height, width = canvas
    return list(dict.fromkeys((side(height, share), side(width, share)) for share in CANVAS_SHARES))


def doubling_up_to(largest: int) -> list[int]:
    """Return 1, 2, 4 ... and ``largest``."""
    return sorted({*(2**power for power in range(largest.bit_length())), largest})


def device_counts() -> list[int]:
    """Return the numbers of devices to measure on this machine."""
    if jax.default_backend() == "cpu":
        return list(FAKE_DEVICES)
    return doubling_up_to(jax.local_device_count())


def _devices_environment(count: int) -> dict[str, str]:
    if jax.default_backend() == "cpu":
        flags = os.environ.get("XLA_FLAGS", "")
        simulated = f"{flags} --xla_force_host_platform_device_count={count}".strip()
        return {"XLA_FLAGS": simulated, "JAX_PLATFORMS": "cpu"}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else map(str, range(count))
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(itertools.islice(devices, count)),
        **NO_PREALLOCATION,
    }


def _end_to_end(
    config: Config, variables: Variables, batch_size: int, canvas: Canvas, effort: Effort
) -> Row:
    arguments = whole_arguments(config, variables, batch_size, canvas)
    program = compile_program(whole_function(config), *arguments)
    return timing_columns(time_calls(lambda: program.run(*arguments), effort), batch_size)


def _child_row(request: dict[str, Any]) -> Row:
    config, variables = load_measured(request["config"])
    config = with_precision(config, request["precision"])
    height, width = request["canvas"]
    effort = Effort(**request["effort"])
    batch_size = request["batch_size"]
    step = time_training(config, variables, batch_size, (height, width), effort)
    return timing_columns(step.timing, batch_size)


if __name__ == "__main__":
    answer(_child_row)
