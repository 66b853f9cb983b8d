"""``python convert_torch_weights.py SOURCE OUT``, from a checkout: as ``rpn-jax convert``."""

import sys

from rpn_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
