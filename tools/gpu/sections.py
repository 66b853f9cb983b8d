"""The sections, in order of importance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rpn_jax.benchmark.figures import Row
from tools.gpu import environment, goals, operations, parity, speed, trace, training


@dataclass(frozen=True)
class Request:
    """What a section is asked to do."""

    out: Path
    """Folder of the results."""
    small: bool
    """Use small networks and pictures, for a CPU."""
    tiny: bool
    """Use the smallest sizes, for the test suite."""


@dataclass(frozen=True)
class SectionOfRun:
    """A section of the command."""

    name: str
    about: str
    """What it measures, for the table."""
    run: Callable[[Request], Iterator[Row]]
    """Yields the rows as they are measured."""
    share: float
    """Weight of its time limit. Time that a section leaves is shared among the later ones."""
    needs: tuple[str, ...] = ()
    """Modules that it needs beyond jax, flax, optax, orbax and numpy."""


SECTIONS = (
    SectionOfRun(
        "environment",
        "Devices, versions and memory.",
        lambda request: environment.rows(),
        share=2,
    ),
    SectionOfRun(
        "parity",
        "Figures of the reference's implementation, computed again on this device. The bars of "
        "float32 are those of docs/parity.md.",
        lambda request: parity.rows(request.small),
        share=16,
    ),
    SectionOfRun(
        "operations",
        "Operations on this device against their CPU forms. On a CPU, the forms for GPUs are "
        "compared with those for CPUs.",
        lambda request: operations.rows(request.small, request.tiny),
        share=12,
    ),
    SectionOfRun(
        "training",
        "Training steps of rpn_demo: losses against those of the CPU, two runs compared, and a run "
        "that is saved and resumed. On a GPU also two runs of faster-rcnn_demo.",
        lambda request: training.rows(request.out, request.small, request.tiny),
        share=16,
    ),
    SectionOfRun(
        "benchmark",
        "Stages of inference, and the training step. Times are of one call, waited for. "
        "times_ours_P: PyTorch's time over ours with precision P, measured in turns.",
        lambda request: speed.benchmark_rows(
            speed.SMALL_CONFIG if request.small else speed.CONFIG, request.small
        ),
        share=30,
    ),
    SectionOfRun(
        "detector",
        "The same for Faster R-CNN, with the parts of its second stage.",
        lambda request: speed.benchmark_rows(
            speed.SMALL_DETECTOR if request.small else speed.DETECTOR, request.small
        ),
        share=34,
    ),
    SectionOfRun(
        "configs",
        "Pictures on the device to proposals, for every config.",
        lambda request: speed.config_rows(request.small),
        share=14,
    ),
    SectionOfRun(
        "input",
        "JPEG files to proposals, resized on the host and on the device, against the device alone.",
        lambda request: speed.input_rows(request.small),
        share=8,
        needs=("cv2", "grain", "PIL"),
    ),
    SectionOfRun(
        "trace",
        "The ten longest kernels of one call of each program, by the profiler. The traces are in "
        "the folder of the results.",
        lambda request: trace.rows(request.out, request.small),
        share=5,
    ),
    SectionOfRun(
        "goals",
        "Goals of docs/performance.md for an NVIDIA H200 against the figures of the sections "
        "'benchmark' and 'detector'.",
        lambda request: goals.rows(request.out),
        share=1,
    ),
)
