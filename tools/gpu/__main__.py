"""The command ``python -m tools.gpu``: run every section and report."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rpn_jax.benchmark.figures import Row
from rpn_jax.errors import UserError, exit_code
from rpn_jax.files import make_folder
from tools.gpu.child import MISSING_PACKAGE
from tools.gpu.results import SectionResult, Status, failed_rows, summary, write_all
from tools.gpu.sections import SECTIONS, SectionOfRun

CHECKOUT = Path(__file__).parents[2]
LAST_WORDS = 300
"""Characters of a failed section's error output that are kept."""
SECONDS_TO_STOP = 5
"""Time that a section gets to end after the first signal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command on ``arguments``, by default those of the process; return its exit code."""
    return exit_code(lambda: _run(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    names = [section.name for section in SECTIONS]
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu",
        description="Check every claim on this machine's GPU: results, speed, and goals.",
        epilog="The exit code is 0 if all sections ran and passed, and 1 otherwise.",
    )
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        required=True,
        help="folder for results.json, results.md, logs and traces",
    )
    add("--minutes", type=float, default=9.0, help="time limit of all sections (default 9)")
    add("--wheels", type=Path, help="folder of wheels for packages that are not installed")
    add(
        "--small",
        action=argparse.BooleanOptionalAction,
        help="small networks and pictures (default on a CPU)",
    )
    add("--tiny", action="store_true", help="the smallest sizes, for the test suite")
    add("--sections", nargs="+", choices=names, default=names, help="sections to run (default all)")
    return parser


def _run(options: argparse.Namespace) -> int:
    make_folder(options.out)
    small = options.small
    if small is None:
        small = options.tiny or _backend() == "cpu"
    recorded = {"small": small, "tiny": options.tiny, "minutes": options.minutes}
    chosen = [section for section in SECTIONS if section.name in options.sections]
    end = time.monotonic() + 60 * options.minutes
    results: list[SectionResult] = []
    signal.signal(signal.SIGTERM, _interrupt)
    write_all(options.out, recorded, results)
    with TemporaryDirectory() as folder:
        environment = _environment(options.wheels, Path(folder))
        try:
            for position, section in enumerate(chosen):
                left = max(end - time.monotonic(), 0.0)
                limit = left * section.share / sum(later.share for later in chosen[position:])
                print(f"{section.name} (at most {limit:.0f} s) ...", flush=True)
                command = [section.name, str(options.out), str(Path(folder) / "rows.jsonl")]
                command += ["--small"] * small + ["--tiny"] * options.tiny
                results.append(_run_section(section, command, environment, limit))
                write_all(options.out, recorded, results)
                print(f"  {results[-1].status} {results[-1].message}".rstrip(), flush=True)
        finally:
            print(summary(options.out, results, len(chosen)), flush=True)
    return int(any(result.status != "passed" for result in results))


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _backend() -> str:
    """Return the platform that JAX prefers, asked in a process that does not keep the GPU."""
    ask = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"JAX does not start: {_last_words(done.stderr)}")
    return done.stdout.strip()


def _environment(wheels: Path | None, folder: Path) -> dict[str, str]:
    """Return the environment of the sections, with the unpacked wheels behind what is installed."""
    paths = [str(CHECKOUT)]
    if wheels is not None:
        found = sorted(wheels.glob("*.whl"))
        if not found:
            raise UserError(f"--wheels {wheels}: contains no .whl file. Make it with tools.wheels.")
        for wheel in found:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder / "wheels")
        # sitecustomize appends the folder, so that an installed package comes before a wheel.
        (folder / "site").mkdir()
        code = f"import sys\nsys.path.append({str(folder / 'wheels')!r})\n"
        (folder / "site" / "sitecustomize.py").write_text(code)
        paths.insert(0, str(folder / "site"))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [*paths, os.environ.get("PYTHONPATH")])),
        # PyTorch runs beside JAX in one section, and needs memory too.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }


def _run_section(
    section: SectionOfRun, command: list[str], environment: dict[str, str], limit: float
) -> SectionResult:
    """Run a section in a separate process and return its result. Its output is in NAME.log."""
    rows_file = Path(command[2])
    rows_file.unlink(missing_ok=True)
    log = Path(command[1]) / f"{section.name}.log"
    start = time.monotonic()
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.gpu.child", *command],
            env=environment,
            stderr=errors,
            stdout=errors,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _stop(process)
    rows = _read_rows(rows_file)
    status, message = _judge(code, rows, limit, log.read_text(errors="replace"))
    seconds = time.monotonic() - start
    return SectionResult(section.name, section.about, status, message, seconds, rows)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the section's processes, if they still run."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(timeout=SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                continue


def _judge(code: int | None, rows: list[Row], limit: float, errors: str) -> tuple[Status, str]:
    """Return the status of a section that ended with ``code``, None at its limit, and a message."""
    if code is None:
        return "failed", f"stopped at its limit of {limit:.0f} s"
    if code == MISSING_PACKAGE:
        return "skipped", _last_words(errors)
    if failed_rows(rows):
        return "failed", f"{failed_rows(rows)} of {len(rows)} rows failed"
    if code:
        return "failed", f"exit code {code}: {_last_words(errors)}"
    return "passed", ""


def _read_rows(path: Path) -> list[Row]:
    """Return the whole lines of the file; the last one may be cut off."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")]


def _last_words(errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return lines[-1][:LAST_WORDS] if lines else "no error message"


if __name__ == "__main__":
    sys.exit(main())
