"""Run ``rpn-jax train`` from a checkout: ``python train.py CONFIG [flags]``."""

import sys

from rpn_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
