"""Measure PyTorch: the same work and weights on the same device, in the same run.

ResNet-50-FPN is torchvision's network, if torchvision is installed. Every other network, and every
network on a machine without torchvision, is plain PyTorch with MMDetection's layers. It has no
post-processing and no RoIAlign, and a simple loss that reads all outputs.

PyTorch gets its best settings: warm-up, cuDNN's autotuning, channels-last memory where it helps,
bfloat16 weights for inference and bfloat16 autocast for training. `torch.compile` compiles the
network. torchvision's post-processing and losses stay eager, because their shapes depend on the
data.

On a GPU PyTorch runs in a child process, before JAX is measured: JAX keeps the memory that it has
used once. Both are timed by the wall clock, from the call until the results exist.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import torch

from rpn_jax.benchmark.figures import Row, one_line, timing_columns
from rpn_jax.benchmark.inputs import Canvas, make_batch
from rpn_jax.benchmark.models import load_measured
from rpn_jax.benchmark.peer_calls import (
    inference_calls,
    is_torchvision_peer,
    make_peer,
    training_calls,
)
from rpn_jax.benchmark.process import answer, ask_child
from rpn_jax.benchmark.timing import Call, Effort, median_ratio, repeat, seconds_until_ready
from rpn_jax.benchmark.torch_variants import CUDA_VARIANTS, Variant, set_precision
from rpn_jax.benchmark.training import BOXES
from rpn_jax.config import Config, Precision
from rpn_jax.structures import Batch, Variables

if TYPE_CHECKING:
    OurCalls = Mapping[str, Mapping[Precision, Call]]
    """Calls of this package, by stage and precision."""

CPU = torch.device("cpu")


def peer_rows(
    config: Config,
    variables: Variables,
    batch_size: int,
    canvas: Canvas,
    train: bool,
    device: torch.device,
    effort: Effort,
    our_calls: OurCalls,
    variants: Sequence[Variant],
) -> Iterator[Row]:
    """Yield the rows of each variant on ``device``: stages of inference, or the training step.

    The column ``times_ours_P`` is the time of PyTorch divided by the time of our call of the same
    stage with precision P, from `timing.median_ratio`. A variant that fails (out of memory, no
    compiler) has a row with ``failed``.
    """
    torch.backends.cudnn.benchmark = True
    library = "torchvision" if is_torchvision_peer(config) else "PyTorch"
    batch = make_batch(batch_size, canvas, BOXES, seed=0)
    for variant in variants:
        name = f"{library} {variant.name}"
        set_precision(variant.precision)
        try:
            measured = _variant_rows(
                config, variables, variant, batch, canvas, train, device, effort, our_calls
            )
        except Exception as error:  # a compiler can raise anything
            measured = [{"failed": one_line(error)}]
        _release_memory(variant, device)
        yield from ({"peer": name, **columns} for columns in measured)


def _variant_rows(
    config: Config,
    variables: Variables,
    variant: Variant,
    batch: Batch,
    canvas: Canvas,
    train: bool,
    device: torch.device,
    effort: Effort,
    our_calls: OurCalls,
) -> list[Row]:
    """Measure one variant. In inference PyTorch records no gradients."""
    peer = make_peer(config, variables, batch, device)
    calls_of = training_calls if train else inference_calls
    calls = calls_of(config, peer, variant, batch, canvas, device)
    with torch.inference_mode(mode=not train):
        return [
            _stage_columns(stage, call, len(batch.images), device, effort, our_calls)
            for stage, call in calls.items()
        ]


def child_rows(
    config_name: str, batch_size: int, canvas: Canvas, train: bool, effort: Effort
) -> list[Row]:
    """Measure `peer_rows` on the GPU in a new process. There JAX only makes inputs, on the CPU.

    The rows have no ``times_ours_P``.

    Raises:
      ChildError: the process failed.
    """
    request = {
        "config": config_name,
        "batch_size": batch_size,
        "canvas": canvas,
        "train": train,
        "effort": asdict(effort),
    }
    return ask_child(__name__, request, {"JAX_PLATFORMS": "cpu"})


def peer_device() -> torch.device | None:
    """Return the device that JAX computes on as a PyTorch device, None if PyTorch cannot use it."""
    if jax.default_backend() == "cpu":
        return torch.device("cpu")
    return torch.device("cuda") if torch.cuda.is_available() else None


def _stage_columns(
    stage: str,
    call: Callable[[], Any],
    pictures: int,
    device: torch.device,
    effort: Effort,
    our_calls: OurCalls,
) -> Row:
    """Time a call. ``first_call_s`` includes compiling and cuDNN's autotuning."""
    on_cuda = device.type == "cuda"
    seconds_of = _synchronized_seconds if on_cuda else _wall_seconds
    first_call = _wall_seconds(lambda: seconds_of(call))
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    columns = timing_columns(repeat(lambda: seconds_of(call), effort), pictures)
    columns["first_call_s"] = first_call
    if on_cuda:
        columns["memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
    for precision, our_call in our_calls.get(stage, {}).items():
        columns[f"times_ours_{precision}"] = median_ratio(
            lambda: seconds_of(call), partial(seconds_until_ready, our_call), effort
        )
    return {"stage": stage, **columns}


def _release_memory(variant: Variant, device: torch.device) -> None:
    """Free the memory of a variant, including its compiled programs, for the next measurement."""
    if variant.compile_mode is not None:
        torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _wall_seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _synchronized_seconds(call: Callable[[], Any]) -> float:
    """Return the wall-clock seconds of a call until a GPU has finished its work."""
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _child_rows(request: dict[str, Any]) -> list[Row]:
    config, variables = load_measured(request["config"])
    height, width = request["canvas"]
    return list(
        peer_rows(
            config,
            variables,
            request["batch_size"],
            (height, width),
            request["train"],
            torch.device("cuda"),
            Effort(**request["effort"]),
            our_calls={},
            variants=CUDA_VARIANTS,
        )
    )


if __name__ == "__main__":
    answer(_child_rows)
