"""``python -m tools.plots benchmark.json FOLDER``: plot results from another machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rpn_jax.benchmark.plots import plot_results
from rpn_jax.cli import read_flags
from rpn_jax.errors import exit_code


@dataclass(frozen=True)
class Options:
    """Plot the results of rpn-jax benchmark, for example from a machine without Matplotlib."""

    results: Annotated[Path, tyro.conf.Positional] = tyro.MISSING
    """The file benchmark.json."""
    folder: Annotated[Path, tyro.conf.Positional] = tyro.MISSING
    """Folder for the plots."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command on ``arguments`` (by default the process's) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code(lambda: _run(read_flags(Options(), words, "python -m tools.plots")))


def _run(options: Options) -> int:
    for path in plot_results(options.results, options.folder):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
