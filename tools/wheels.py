"""Make a folder of wheels for a machine without a network.

    python -m tools.wheels --out FOLDER [--python-version 3.12] [--platform manylinux_2_28_x86_64]

The folder holds what ``python -m tools.gpu --wheels FOLDER`` may need beyond jax, flax, optax,
orbax, numpy, torch and torchvision. Packages that come with these are left out. Run the command on
a machine with a network, then copy the folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rpn_jax.errors import UserError, exit_code
from rpn_jax.files import make_folder

PACKAGES = (
    "array-record",
    "cloudpickle",
    "docstring-parser",
    "grain",
    "msgspec",
    "opencv-python-headless==4.11.0.86",
    "portpicker",
    "pycocotools",
    "simplejpeg",
    "tensorboardX",
    "typeguard",
    "tyro",
)
"""Packages that the machine may lack, and those that they import. rich, absl-py, etils and protobuf
come with Flax and Orbax, and Pillow comes with torchvision. OpenCV's wheels from 4.13 on take more
than 60 MB; 4.11 takes 50 MB and resizes in the same way."""
MAX_MEGABYTES = 60.0
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command on ``arguments``, by default those of the process; return its exit code."""
    return exit_code(lambda: _run(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.wheels",
        description="Make a folder of wheels for 'python -m tools.gpu --wheels'.",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write the wheels to")
    add("--python-version", default=PYTHON_VERSION, help="Python of the other machine, as 3.12")
    add(
        "--platform",
        nargs="+",
        default=["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"],
        help="platform tags of the other machine",
    )
    return parser


def _run(options: argparse.Namespace) -> int:
    make_folder(options.out)
    command = download_command(options.out, options.python_version, options.platform)
    if subprocess.run(command, check=False).returncode:
        raise UserError(
            f"--out {options.out}: pip could not download all wheels. Its messages are above."
        )
    megabytes = check_size(options.out)
    print(f"{len(list(options.out.glob('*.whl')))} wheels, {megabytes:.1f} MB, in {options.out}")
    return 0


def download_command(out: Path, python_version: str, platforms: Sequence[str]) -> list[str]:
    """Return the command of pip that downloads the wheels to ``out``."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--python-version", python_version, "--dest", str(out)]
    for platform in platforms:
        command += ["--platform", platform]
    return [*command, *PACKAGES]


def check_size(folder: Path) -> float:
    """Return the size of the wheels in a folder, in MB.

    Raises:
      UserError: they are larger than `MAX_MEGABYTES`.
    """
    sizes = {path.name: path.stat().st_size / 1e6 for path in folder.glob("*.whl")}
    if (total := sum(sizes.values())) > MAX_MEGABYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise UserError(
            f"{folder}: the wheels take {total:.1f} MB, and {MAX_MEGABYTES:g} MB are allowed. "
            f"The largest is {largest} ({sizes[largest]:.1f} MB)."
        )
    return total


if __name__ == "__main__":
    sys.exit(main())
