"""Compare the throughput of 'propose --engine ray' with the plain command, in one run.

python -m tools.ray_speed CONFIG PICTURES WEIGHTS --workers 2 --copies 4

Both commands run as new processes, in turns. A time is that of the whole command, with its start,
its compilation and the writing of its files. A second time leaves out what a run on one picture
needs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rpn_jax.cli import read_flags
from rpn_jax.data.files import find_pictures
from rpn_jax.errors import UserError, exit_code


@dataclass(frozen=True)
class Options:
    """Measure pictures per second of the plain command and of a local Ray."""

    config: Annotated[str, tyro.conf.Positional] = tyro.MISSING
    """Name or path of a config."""
    pictures: Annotated[str, tyro.conf.Positional] = tyro.MISSING
    """Folder of pictures."""
    weights: Annotated[str, tyro.conf.Positional] = tyro.MISSING
    """Folder of weights."""
    workers: int = 1
    """Number of workers of Ray."""
    copies: int = 1
    """Number of links to each picture, for a longer list."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command on ``arguments`` (by default the process's) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code(lambda: _run(read_flags(Options(), words, "python -m tools.ray_speed")))


def _run(options: Options) -> int:
    found = find_pictures([options.pictures])
    ray_flags = ["--engine", "ray", "--ray-workers", str(options.workers)]
    with tempfile.TemporaryDirectory() as folder:
        many, one = Path(folder, "many"), Path(folder, "one")
        for copy in range(options.copies):
            _link(found, many, f"{copy:03}_")
        _link(found[:1], one, "")
        rates = {}
        for name, flags in (("plain", []), ("ray", ray_flags)):
            start = _seconds(options, one, Path(folder, f"{name}_one"), flags)
            whole = _seconds(options, many, Path(folder, f"{name}_many"), flags)
            count = len(found) * options.copies
            rates[name] = (count / whole, (count - 1) / (whole - start))
            print(
                f"{name}: {count} pictures in {whole:.1f} s, {rates[name][0]:.2f}/s; without the "
                f"{start:.1f} s of a run on one picture: {rates[name][1]:.2f}/s",
                flush=True,
            )
    whole, steady = (ray / plain for ray, plain in zip(rates["ray"], rates["plain"], strict=True))
    print(f"ray / plain: {whole:.2f} for the whole command, {steady:.2f} without the start")
    return 0


def _link(pictures: Sequence[Path], folder: Path, prefix: str) -> None:
    folder.mkdir(exist_ok=True)
    for picture in pictures:
        (folder / f"{prefix}{picture.name}").symlink_to(picture.absolute())


def _seconds(options: Options, pictures: Path, out: Path, flags: Sequence[str]) -> float:
    """Return the wall-clock time of a command."""
    words = ["propose", options.config, str(pictures), "--weights", options.weights]
    program = "import sys; from rpn_jax.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, *words, "--out", str(out), *flags]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(words[:2])}: failed ({done.stderr.strip()})")
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
