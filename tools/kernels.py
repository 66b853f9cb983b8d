"""``python -m tools.kernels CONFIG``: count the kernels that XLA compiles a program to.

Nothing is timed. With ``--target`` XLA compiles for a GPU that is described in a file, so no such
GPU is needed, but JAX's CUDA plugin is. XLA has descriptions of GPUs in
``xla/backends/gpu/target_config/specs`` (``GpuTargetConfigProto`` as text).
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from rpn_jax.benchmark.options import check_sizes
from rpn_jax.cli import read_flags
from rpn_jax.config import Config, Precision, load_config, with_precision
from rpn_jax.errors import UserError, exit_code, reading
from rpn_jax.verbs import OptionalPath, Switch

if TYPE_CHECKING:
    import jax

    from rpn_jax.benchmark.figures import Row

    ProgramToCompile = tuple[str, jax.stages.Wrapped, tuple[Any, ...]]
    """Name, function, and the shapes of its arguments."""

NOTE = """\
kernels: instructions of the compiled program that start a kernel, outside of loops. in_loops:
those in while loops, each counted once. conv_fused: convolutions that can include bias, sum or
ReLU (cuDNN's); conv_plain: all other convolutions."""

NOTHING = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while")
"""Instructions that do not start a kernel."""
INSTRUCTION = re.compile(r"(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) ([\w\-]+)\(")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
KINDS = (
    ("conv_fused", "convBiasActivation"),
    ("conv_plain", "conv(?!ert)"),
    ("matmul", "gemm|dot"),
    ("sort", "sort|top_?k"),
    ("copy_or_transpose", "copy|transpose"),
)
"""Kinds of kernels and patterns of their names. The first match counts."""
CALLED = re.compile(r"(?:to_apply|calls)=%?([\w.\-]+)")
LOOPED = re.compile(r"(?:condition|body)=%?([\w.\-]+)")


@dataclass(frozen=True)
class Options:
    """Count the kernels of inference, or of the training step, on this device or another GPU."""

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")] = tyro.MISSING
    """Name of a config, or path of a .py or .json file."""
    target: OptionalPath = None
    """File that describes a GPU to compile for, instead of this device."""
    train: Switch = False
    """Compile the training step instead of inference."""
    batch_sizes: tuple[int, ...] = (1,)
    """Number of pictures in one call."""
    size: Annotated[tuple[int, int] | None, tyro.conf.DisallowNone] = None
    """Height and width of the pictures, in pixels. The default is the config's largest canvas."""
    precisions: tuple[Precision, ...] = ("float32",)
    """Precisions of the network."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command on ``arguments`` (by default the process's) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code(lambda: _run(read_flags(Options(), words, "python -m tools.kernels")))


def count_kernels(hlo: str) -> Row:
    """Count the instructions of a compiled program by kind.

    Args:
      hlo: text of the optimised program, from ``jax.stages.Compiled.as_text``.
    """
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        if header := COMPUTATION.match(line):
            name = header[2]
            entry = name if header[1] else entry
            computations[name] = []
        elif line.startswith("  ") and name:
            computations[name].append(line.strip())
    counts: Counter[str] = Counter()
    _count(computations, entry, counts, in_loop=False)
    return {kind: counts[kind] for kind in ("kernels", *(kind for kind, _ in KINDS), "in_loops")}


def _count(
    computations: dict[str, list[str]], computation: str, counts: Counter[str], in_loop: bool
) -> None:
    for line in computations[computation]:
        instruction = INSTRUCTION.match(line)
        if instruction is None:
            continue
        name, operation = instruction[1], instruction[2]
        if operation == "while":
            for part in LOOPED.findall(line):
                _count(computations, part, counts, in_loop=True)
        elif operation == "call":
            for part in CALLED.findall(line):
                _count(computations, part, counts, in_loop)
        elif operation not in NOTHING:
            counts["in_loops" if in_loop else "kernels"] += 1
            if not in_loop:
                counts[_kind(name, operation, line)] += 1


def _kind(name: str, operation: str, line: str) -> str:
    """Return the kind of an instruction from XLA's names. A fusion's name says what it contains."""
    what = [operation, *re.findall(r'custom_call_target="([^"]+)"', line)]
    if operation == "fusion":
        what.append(name)
    if "kind=kCustom" in line:  # a kernel for one operation, named after it
        what += re.findall(r'op_name="[^"]*?([^"/]+)"', line)
    for kind, pattern in KINDS:
        if re.search(pattern, " ".join(what), re.IGNORECASE):
            return kind
    return "other"


def _run(options: Options) -> int:
    from rpn_jax.benchmark.figures import Section
    from rpn_jax.benchmark.report import table

    check_sizes(options.batch_sizes, options.size)
    config = load_config(options.config)
    size = options.size or max(config.data.canvases, key=math.prod)
    device = _described_device(options.target) if options.target else None
    programs_of = _training if options.train else partial(_inference, device=device)
    rows = [
        _row(program, precision, batch_size, device)
        for precision in options.precisions
        for batch_size in options.batch_sizes
        for program in programs_of(with_precision(config, precision), batch_size, size)
    ]
    print(table(Section("kernels", NOTE, rows)))
    return 0


def _inference(
    config: Config, batch_size: int, size: tuple[int, int], device: jax.Device | None
) -> list[ProgramToCompile]:
    """Return the network, post-processing, and both together."""
    import jax

    from rpn_jax.benchmark import stages
    from rpn_jax.benchmark.inputs import output_shapes

    images = jax.ShapeDtypeStruct((batch_size, *size, 3), "uint8")
    image_sizes = jax.ShapeDtypeStruct((batch_size, 2), "int32")
    factors = jax.ShapeDtypeStruct((batch_size, 2), "float32")
    weights = _weight_shapes(config, on_cpu=device is None and jax.default_backend() == "cpu")
    return [
        (stages.NETWORK, stages.network_function(config), (weights, images, image_sizes)),
        (
            stages.POST_PROCESSING,
            stages.post_processing_function(config),
            (output_shapes(config, batch_size, size), image_sizes),
        ),
        (
            stages.WHOLE,
            stages.whole_function(config),
            (weights, images, image_sizes, factors),
        ),
    ]


def _training(config: Config, batch_size: int, size: tuple[int, int]) -> list[ProgramToCompile]:
    from rpn_jax.benchmark.training import STEP, step_program

    return [(STEP, *step_program(config, batch_size, size))]


def _row(
    program: ProgramToCompile, precision: str, batch_size: int, device: jax.Device | None
) -> Row:
    name, function, arguments = program
    compiled = _compile(function, arguments, device)
    memory = compiled.memory_analysis()
    return {
        "program": name,
        "precision": precision,
        "batch": batch_size,
        **count_kernels(compiled.as_text() or ""),
        "arguments_mb": memory and memory.argument_size_in_bytes / 1e6,
        "temporary_mb": memory and memory.temp_size_in_bytes / 1e6,
    }


def _weight_shapes(config: Config, on_cpu: bool) -> Any:
    import jax
    import numpy as np

    from rpn_jax.models import build_detector, variable_shapes
    from rpn_jax.models.folding import fold_norms

    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(config))
    return jax.eval_shape(
        lambda: fold_norms(build_detector(config.model), zeros, kernels_ohwi=not on_cpu)
    )


def _compile(
    function: jax.stages.Wrapped, arguments: tuple[Any, ...], device: jax.Device | None
) -> jax.stages.Compiled:
    import jax

    if device is None:
        return function.lower(*arguments).compile()
    sharding = jax.sharding.SingleDeviceSharding(device)
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), arguments
    )
    # Without a device XLA cannot measure algorithms.
    options: dict[str, str | bool] = {"xla_gpu_autotune_level": "0"}
    return function.lower(*placed).compile(compiler_options=options)


def _described_device(path: Path) -> jax.Device:
    from jax.experimental import topologies

    with reading(f"--target {path}"):
        description = path.read_text()
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=description, topology="1x1x1"
        )
    except Exception as error:  # the plugin raises exceptions of many types
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"--target {path}: XLA cannot compile for it ({reason})") from None
    return topology.devices[0]


if __name__ == "__main__":
    sys.exit(main())
