"""``python train.py CONFIG [flags]``, from a checkout: the same as ``rpn-jax train``."""

import sys

from rpn_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
