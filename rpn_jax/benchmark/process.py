"""What only a process of its own can tell: import time, and peak memory of inference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rpn_jax.benchmark.figures import Row
from rpn_jax.benchmark.inputs import Canvas, make_batch
from rpn_jax.benchmark.timing import Effort, repeat
from rpn_jax.config import Config, load_config, replace

if TYPE_CHECKING:
    from rpn_jax.ops.convolution import Precision

IMPORTS = {
    "import rpn_jax": "import rpn_jax",
    "import all that inference needs": "from rpn_jax import RPN, load_config, propose",
}
IMPORT_EFFORT = Effort(runs=7, seconds=60.0)
INFERENCE_CALLS = 3
PROCESS_STATUS = Path("/proc/self/status")


def import_rows() -> Iterator[Row]:
    """Seconds of statements in a fresh interpreter, Python's own start left out."""
    for name, statement in IMPORTS.items():
        timing = repeat(partial(_import_seconds, statement), IMPORT_EFFORT)
        yield {"what": name, "median_s": timing.median, "p90_s": timing.p90}


def memory_row(config_name: str, precision: Precision, canvas: Canvas) -> Row:
    """Peak memory of a process that compiles inference of one picture and runs it.

    Host memory is the process's resident peak (Linux only), everything that is loaded included.
    """
    figures = json.loads(
        run_python(
            ["-m", __name__, config_name, precision, *map(str, canvas)],
            # The parent holds most of a GPU's memory already.
            {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )
    )
    return {"what": f"inference of one {canvas[0]}x{canvas[1]} picture, {precision}", **figures}


def run_python(words: list[str], variables: dict[str, str]) -> str:
    """Output of a Python process with further environment variables.

    Raises:
      RuntimeError: it failed; holds what it said.
    """
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"python {' '.join(words)} failed: {done.stderr}")
    return done.stdout


def inference_peak(config: Config, canvas: Canvas) -> dict[str, Any]:
    """Run inference in this process; its peaks so far, in MB, None where they are unknown."""
    import jax
    import numpy as np

    from rpn_jax.benchmark.device import peak_device_bytes
    from rpn_jax.benchmark.stages import one_device, whole_function
    from rpn_jax.inference.forward import prepare_variables
    from rpn_jax.models import variable_shapes
    from rpn_jax.runtime import return_memory_after_compiling

    return_memory_after_compiling()
    batch = make_batch(1, canvas, boxes=1, seed=0)
    # As if loaded: random ones would have to be computed first, which takes memory too.
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), variable_shapes(config))
    prepared = prepare_variables(config, variables, one_device())
    del variables
    function = whole_function(config)
    for _ in range(INFERENCE_CALLS):
        jax.block_until_ready(
            function(prepared, batch.images, batch.image_sizes, batch.scale_factors)
        )
    host, device = _peak_resident_bytes(), peak_device_bytes()
    return {
        "peak_resident_mb": host and host / 1e6,
        "peak_device_mb": device and device / 1e6,
    }


def _import_seconds(statement: str) -> float:
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return float(run_python(["-c", code], {}))


def _peak_resident_bytes() -> int | None:
    # Not getrusage: a child starts with the peak of the parent that forked it.
    if not PROCESS_STATUS.is_file():
        return None
    lines = PROCESS_STATUS.read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024


def main(arguments: list[str]) -> None:
    """The child of `memory_row`: CONFIG PRECISION HEIGHT WIDTH in, JSON out."""
    name, precision, height, width = arguments
    config = load_config(name)
    model = replace(config.model, precision=cast("Precision", precision))
    print(json.dumps(inference_peak(replace(config, model=model), (int(height), int(width)))))


if __name__ == "__main__":
    main(sys.argv[1:])
