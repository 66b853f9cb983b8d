"""``python -m rpn_jax.benchmark CONFIG``: the verb, on a machine without tyro."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rpn_jax.benchmark.options import parse_options
from rpn_jax.errors import exit_code


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark on the words ``arguments``; its `rpn_jax.errors.exit_code`."""

    def command() -> int:
        options = parse_options(arguments, "python -m rpn_jax.benchmark")
        from rpn_jax.benchmark.command import run

        run(options)
        return 0

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
