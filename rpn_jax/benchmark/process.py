"""Measurements in a new process: import time, peak memory of inference, and other modules' cases.

A module that measures in a child process calls `ask_child` with its own name, and `answer` if it
runs as ``__main__``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rpn_jax.benchmark.figures import Row
from rpn_jax.benchmark.inputs import Canvas, make_batch
from rpn_jax.benchmark.timing import Effort, repeat
from rpn_jax.config import Config, Precision, load_config, with_precision

IMPORTS = {
    "import rpn_jax": "import rpn_jax",
    "import everything for inference": "from rpn_jax import RPN, load_config, propose",
}
IMPORT_EFFORT = Effort(runs=7, seconds=60.0)
INFERENCE_CALLS = 3
PROCESS_STATUS = Path("/proc/self/status")
NO_PREALLOCATION = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""By default JAX takes 75% of a GPU's memory when it starts. Two processes then do not fit."""


class ChildError(RuntimeError):
    """A child process failed. The message is the last line that it printed on stderr."""


def ask_child(module: str, request: dict[str, Any], variables: dict[str, str]) -> Any:
    """Run ``python -m MODULE`` with ``request`` as JSON, and return its JSON answer.

    Args:
      module: a module that calls `answer`.
      request: what to measure; plain JSON values.
      variables: environment variables to add.

    Raises:
      ChildError: the process failed.
    """
    output = run_python(["-m", module, json.dumps(request)], variables)
    return json.loads(output.splitlines()[-1])  # libraries may print before


def answer(measure: Callable[[dict[str, Any]], Any]) -> None:
    """Print the JSON answer of ``measure`` to the request on the command line of this process."""
    print(json.dumps(measure(json.loads(sys.argv[1]))))


def run_python(words: list[str], variables: dict[str, str]) -> str:
    """Return the output of a Python process with the environment ``variables`` added.

    Raises:
      ChildError: the process failed. Its whole stderr is printed on ours.
    """
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        lines = done.stderr.split("\n")
        reason = next((line for line in reversed(lines) if line.strip()), "no message")
        raise ChildError(f"exit code {done.returncode}: {reason}")
    return done.stdout


def import_rows() -> Iterator[Row]:
    """Measure the seconds of import statements in a new interpreter, without Python's own start."""
    for name, statement in IMPORTS.items():
        timing = repeat(partial(_import_seconds, statement), IMPORT_EFFORT)
        yield {"what": name, "median_s": timing.median, "p90_s": timing.p90}


def memory_row(config_name: str, precision: Precision, canvas: Canvas) -> Row:
    """Measure the peak memory of a process that compiles and runs inference of one picture.

    Host memory is the process's peak resident memory, including all libraries (Linux only).

    Raises:
      ChildError: the process failed.
    """
    request = {"config": config_name, "precision": precision, "canvas": canvas}
    return ask_child(__name__, request, NO_PREALLOCATION)


def inference_peak(config: Config, canvas: Canvas) -> Row:
    """Run inference in this process and return its peak memory in MB, None where unknown."""
    import jax
    import numpy as np

    from rpn_jax.benchmark.stages import one_device, whole_function
    from rpn_jax.devices import peak_memory
    from rpn_jax.inference.forward import prepare_variables
    from rpn_jax.models import variable_shapes
    from rpn_jax.runtime import return_memory_after_compiling

    return_memory_after_compiling()
    batch = make_batch(1, canvas, boxes=1, seed=0)
    # Use ones with the shapes of loaded weights. Random initialisation would need extra memory.
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), variable_shapes(config))
    prepared = prepare_variables(config, variables, one_device())
    del variables
    function = whole_function(config)
    for _ in range(INFERENCE_CALLS):
        jax.block_until_ready(
            function(prepared, batch.images, batch.image_sizes, batch.scale_factors)
        )
    host, device = _peak_resident_bytes(), peak_memory()
    return {
        "peak_resident_mb": host and host / 1e6,
        "peak_device_mb": device and device / 1e6,
    }


def _import_seconds(statement: str) -> float:
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return float(run_python(["-c", code], {}))


def _peak_resident_bytes() -> int | None:
    # getrusage would count the peak of the parent process, from which this one was forked.
    if not PROCESS_STATUS.is_file():
        return None
    lines = PROCESS_STATUS.read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024


def _child_peak(request: dict[str, Any]) -> Row:
    config = with_precision(load_config(request["config"]), request["precision"])
    height, width = request["canvas"]
    return inference_peak(config, (height, width))


if __name__ == "__main__":
    answer(_child_peak)
