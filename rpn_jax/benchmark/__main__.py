"""``python -m rpn_jax.benchmark CONFIG``: the verb, on a machine without tyro."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rpn_jax.benchmark.options import parse_options
from rpn_jax.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark on the words ``arguments``; 0, or 2 for bad input, told in one line."""
    try:
        options = parse_options(arguments, "python -m rpn_jax.benchmark")
        from rpn_jax.benchmark.command import run

        run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
