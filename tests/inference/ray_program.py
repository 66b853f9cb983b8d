"""Run `propose` on a local Ray with two workers, in chunks of two pictures.

Arguments: config file, folder of weights, pictures or Parquet file, folder of the output, and
optionally the word 'kill': then this process is killed at the first finished chunk.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rpn_jax.config import load_config
from rpn_jax.inference import ray_engine


@contextmanager
def killing(*_: object) -> Iterator[object]:
    yield lambda pictures: os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    config_file, weights, pictures, out, *kill = sys.argv[1:]
    if kill:
        ray_engine.picture_progress = killing  # type: ignore[assignment]
    job = ray_engine.Job(
        load_config(config_file),
        weights,
        Path(out, "proposals.parquet"),
        detects=False,
        min_score=0.0,
        platform="cpu",
    )
    ray_engine.run_on_ray(job, [pictures], Path(out), workers=2, chunk_pictures=2)
