"""``python -m tools.kernels CONFIG``: what XLA makes of a program, kernel by kernel.

It needs no device of the kind that it compiles for: with ``--target`` XLA compiles for a GPU that
is described in a file, given JAX's CUDA plugin. (XLA keeps such files, ``GpuTargetConfigProto`` as
text, in ``xla/backends/gpu/target_config/specs``.) Nothing is timed.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from rpn_jax.benchmark.options import OneLineParser, at_least
from rpn_jax.config import CANVAS_MULTIPLE, Config, ModelConfig, load_config, replace
from rpn_jax.errors import UserError, exit_code, reading

if TYPE_CHECKING:
    import jax

    from rpn_jax.benchmark.figures import Row

    ProgramToCompile = tuple[str, jax.stages.Wrapped, tuple[Any, ...]]
    """Its name, the function, and the shapes of its arguments."""

NOTE = """\
Instructions of the compiled program that start a kernel; those in while loops once, as in_loops.
conv_fused are convolutions that may end with bias, sum or ReLU (cuDNN's), conv_plain all others."""
DESCRIPTION = """\
Count the kernels that inference, or the training step, is compiled to, on this device or for
another one."""

NOTHING = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while")
"""Instructions that start no kernel."""
INSTRUCTION = re.compile(r"(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) ([\w\-]+)\(")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
KINDS = (
    ("conv_fused", "convBiasActivation"),
    ("conv_plain", "conv(?!ert)"),
    ("matmul", "gemm|dot"),
    ("sort", "sort|top_?k"),
    ("copy_or_transpose", "copy|transpose"),
)
"""Kinds of kernels and what their names hold, the first that fits."""
CALLED = re.compile(r"(?:to_apply|calls)=%?([\w.\-]+)")
LOOPED = re.compile(r"(?:condition|body)=%?([\w.\-]+)")


def main(arguments: Sequence[str]) -> int:
    """Run the command on ``arguments``; its `rpn_jax.errors.exit_code`."""
    return exit_code(lambda: _run(arguments))


def count_kernels(hlo: str) -> Row:
    """Counts by kind of a compiled program's instructions.

    Args:
      hlo: the optimised program as text, as ``jax.stages.Compiled.as_text`` gives it.
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
    """By the names that XLA gives; what it calls a fusion tells what is in it."""
    what = [operation, *re.findall(r'custom_call_target="([^"]+)"', line)]
    if operation == "fusion":
        what.append(name)
    if "kind=kCustom" in line:  # a library's or a hand-written kernel, for one operation of ours
        what += re.findall(r'op_name="[^"]*?([^"/]+)"', line)
    for kind, pattern in KINDS:
        if re.search(pattern, " ".join(what), re.IGNORECASE):
            return kind
    return "other"


def _run(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    from rpn_jax.benchmark.figures import Section
    from rpn_jax.benchmark.report import table

    config = load_config(options.config)
    size = tuple(options.size or max(config.data.buckets, key=lambda canvas: canvas[0] * canvas[1]))
    device = _described_device(options.target) if options.target else None
    programs_of = _training if options.train else partial(_inference, device=device)
    rows = [
        _row(program, precision, batch_size, device)
        for precision in options.precisions
        for batch_size in options.batch_sizes
        for program in programs_of(
            replace(config, model=replace(config.model, precision=precision)), batch_size, size
        )
    ]
    print(table(Section("kernels", NOTE, rows)))
    return 0


def _parser() -> OneLineParser:
    precisions = get_args(get_type_hints(ModelConfig)["precision"])
    side = at_least(int, CANVAS_MULTIPLE, multiple_of=CANVAS_MULTIPLE)
    parser = OneLineParser(
        prog="python -m tools.kernels", description=DESCRIPTION, allow_abbrev=False
    )
    add = parser.add_argument
    add("config", metavar="CONFIG", help="config, a name or the path of a file")
    add("--target", type=Path, help="description of a GPU to compile for, instead of this device")
    add("--train", action="store_true", help="the training step instead of inference")
    add("--batch-sizes", nargs="+", type=at_least(int, 1), default=[1], help="pictures a call")
    add("--size", nargs=2, type=side, metavar=("HEIGHT", "WIDTH"), help="pixels")
    add("--precisions", nargs="+", choices=precisions, default=["float32"])
    return parser


def _inference(
    config: Config, batch_size: int, size: tuple[int, int], device: jax.Device | None
) -> list[ProgramToCompile]:
    """The network, post-processing and both."""
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

    from rpn_jax.models import variable_shapes
    from rpn_jax.models.folding import fold_norms

    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(config))
    return jax.eval_shape(lambda: fold_norms(config.model, zeros, kernels_ohwi=not on_cpu))


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
    # Without a device there is nothing to try out algorithms on.
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
    except Exception as error:  # the plugin's own, of many kinds
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"--target {path}: XLA cannot compile for it ({reason})") from None
    return topology.devices[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
