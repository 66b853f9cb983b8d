"""Run `propose` and kill this process in the middle of writing its third batch.

Arguments: config file, folder of weights, folder of pictures, folder of the output.
"""

import os
import signal
import sys
from pathlib import Path

from rpn_jax.config import load_config
from rpn_jax.inference import command
from rpn_jax.inference.part_file import PartFile

append_whole = PartFile.append


def append_half(part, batch, rows):
    start = part.file.seek(0, os.SEEK_END)
    append_whole(part, batch, rows)
    if part.finished == 3:
        end = part.file.seek(0, os.SEEK_END)
        os.truncate(part.path, (start + end) // 2)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    config_file, weights, pictures, out = sys.argv[1:]
    PartFile.append = append_half  # type: ignore[method-assign]
    command.propose(
        load_config(config_file), weights, [pictures], Path(out), 0, 0.0, exact_padding=False
    )
