"""Run ``rpn-jax convert`` from a checkout: ``python convert_torch_weights.py SOURCE OUT``."""

import sys

from rpn_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
