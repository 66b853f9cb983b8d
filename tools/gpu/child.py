"""Run one section in this process: ``python -m tools.gpu.child SECTION OUT ROWS [--small]``.

Each row is written to the file ``ROWS`` as a line of JSON when it is measured, so that the rows of
a section that is stopped are kept. The exit code is 0 if all checks passed, 1 if a check failed,
and 3 if a package is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rpn_jax.devices import use_platform
from rpn_jax.runtime import set_up_compiling
from tools.gpu.results import failed_rows
from tools.gpu.sections import SECTIONS, Request

MISSING_PACKAGE = 3
"""Exit code if a package is missing."""


def main() -> int:
    """Run the section that the command line names and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.child", description=__doc__)
    parser.add_argument("section", choices=[section.name for section in SECTIONS])
    parser.add_argument("out", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    section = next(section for section in SECTIONS if section.name == options.section)
    missing = [module for module in section.needs if find_spec(module) is None]
    if missing:
        print(f"not installed: {', '.join(missing)} (--wheels can provide them)", file=sys.stderr)
        return MISSING_PACKAGE
    use_platform("auto")
    set_up_compiling()
    rows = []
    with options.rows.open("w") as file:
        for row in section.run(Request(options.out, options.small, options.tiny)):
            file.write(json.dumps(row, default=_plain) + "\n")
            file.flush()
            rows.append(row)
    return int(failed_rows(rows) > 0)


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
