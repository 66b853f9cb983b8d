"""Kill training runs, flip bytes of checkpoints, and count what happens.

    python -m tools.reliability --kills 3 --flips 200 --out reliability.json

Each run trains a small RPN on the pictures of examples/bccd with four simulated CPU devices: in one
process, or in two processes that find each other on the loopback interface. A run is killed with
SIGKILL at a random step and resumed. Its last checkpoint is compared with that of a run that was
not killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rpn_jax.config import AnchorConfig, Config, RPNHeadConfig, load_config, save_config
from rpn_jax.errors import UserError
from rpn_jax.files import write_json
from rpn_jax.training.metrics import METRICS_FILE, read_metrics
from rpn_jax.weights.checkpoints import CHECKPOINTS, OPTIMIZER, VARIABLES, restore_newest
from rpn_jax.weights.trees import by_name, read_item

DATA = Path(__file__).parents[1] / "examples" / "bccd"
DEVICES, BATCH_SIZE, STEPS, SAVE_EVERY = 4, 8, 26, 5
"""The pictures of `DATA` make an epoch of STEPS steps."""
PEER_TIMEOUT = 10
PROGRAM = "import sys; from rpn_jax.cli import main; sys.exit(main())"
SECONDS_TO_END = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=3, help="killed runs of each kind")
    parser.add_argument("--flips", type=int, default=200, help="flipped bytes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kills and the flips")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the counts")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.kills, arguments.flips, rng)
    write_json(arguments.out, result)
    print(json.dumps(result, indent=2))


def measure(folder: Path, kills: int, flips: int, rng: random.Random) -> dict[str, Any]:
    config = folder / "config.json"
    save_config(small_config(), config)
    undisturbed: dict[int, Path] = {}
    result: dict[str, Any] = {}
    for processes in (1, 2):
        workdir = undisturbed[processes] = folder / f"undisturbed_{processes}"
        run_to_end(config, workdir, processes)
        print(f"trained without a kill in {processes} processes", flush=True)
        trials = [
            killed_run(config, folder / f"killed_{processes}_{number}", workdir, processes, rng)
            for number in range(kills)
        ]
        result[f"killed_runs_of_{processes}_processes"] = trials
    one, two = (losses(undisturbed[processes]) for processes in (1, 2))
    differences = [abs(a - b) / abs(a) for a, b in zip(one, two, strict=True)]
    result["losses_of_1_and_2_processes"] = list(zip(one, two, strict=True))
    result["largest_relative_difference_of_losses"] = max(differences)
    result["flips"] = count_flips(undisturbed[1], flips, rng)
    return result


def small_config() -> Config:
    base = load_config("rpn_r18_fpn_gn_small")
    anchors = AnchorConfig(strides=(4, 8, 16), scales=(4.0,))
    model = replace(
        base.model,
        backbone=replace(base.model.backbone, num_stages=2),
        neck_channels=32,
        rpn=RPNHeadConfig(channels=32, anchors=anchors),
    )
    train = replace(base.train, epochs=1, eval_every=0, log_every=1, save_every_steps=SAVE_EVERY)
    data = replace(base.data, root=str(DATA), scale=(64, 64), batch_size=BATCH_SIZE)
    optim = replace(base.optim, warmup_steps=10, decay_epochs=())
    return replace(base, model=model, train=train, data=data, optim=optim)


def killed_run(
    config: Path, workdir: Path, undisturbed: Path, processes: int, rng: random.Random
) -> dict[str, Any]:
    """Kill one process of a run at a random step, resume the run, and compare its end."""
    step, victim = rng.randrange(2, STEPS - SAVE_EVERY), rng.randrange(processes)
    running = start(config, workdir, processes, resume=False)
    wait_for_step(workdir, step, running)
    killed_at = time.monotonic()
    running[victim].kill()
    codes = [process.wait(SECONDS_TO_END) for process in running]
    seconds = time.monotonic() - killed_at
    run_to_end(config, workdir, processes)
    expected, found = final_arrays(undisturbed), final_arrays(workdir)
    equal = all(np.array_equal(expected[name], found[name]) for name in expected)
    trial = {
        "killed_after_step": step,
        "killed_process": victim,
        "exit_codes": codes,
        "seconds_until_all_ended": round(seconds, 2),
        "ended_with_the_same_bits": equal,
    }
    print(trial, flush=True)
    return trial


def run_to_end(config: Path, workdir: Path, processes: int) -> None:
    running = start(config, workdir, processes, resume=True)
    codes = [process.wait(SECONDS_TO_END) for process in running]
    assert codes == [0] * processes, codes


def start(
    config: Path, workdir: Path, processes: int, resume: bool
) -> list[subprocess.Popen[bytes]]:
    """Start the processes of a run, with all simulated devices together."""
    count = f"--xla_force_host_platform_device_count={DEVICES // processes}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    words = ["train", str(config), "--workdir", str(workdir), "--platform", "cpu"]
    words += ["--resume"] if resume else []
    words += ["--coordinator", coordinator, "--peer-timeout", str(PEER_TIMEOUT)]
    words += ["--process-count", str(processes), "--process-id"]
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words, str(number)],
            env={**os.environ, "XLA_FLAGS": count},
            stdout=(workdir.parent / f"{workdir.name}.{number}.log").open("a"),
            stderr=subprocess.STDOUT,
        )
        for number in range(processes)
    ]


def wait_for_step(workdir: Path, step: int, running: list[subprocess.Popen[bytes]]) -> None:
    path = workdir / METRICS_FILE
    while not path.exists() or not any(row["step"] >= step for row in read_metrics(path)):
        assert all(process.poll() is None for process in running)
        time.sleep(0.02)


def losses(workdir: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(workdir / METRICS_FILE)]


def steps_of(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / CHECKPOINTS).iterdir())


def final_arrays(workdir: Path) -> dict[str, np.ndarray]:
    folder = workdir / CHECKPOINTS / str(steps_of(workdir)[-1])
    return by_name([read_item(folder / VARIABLES), read_item(folder / OPTIMIZER)])


def count_flips(workdir: Path, flips: int, rng: random.Random) -> dict[str, int]:
    """Flip one byte of the newest checkpoint at a time, and count how it is restored.

    - detected: the checkpoint before it is used, and the damage is reported.
    - refused: an error message, and nothing is restored.
    - harmless: the newest checkpoint is restored with the right arrays.
    - unnoticed: wrong arrays are restored.
    """
    newest = workdir / CHECKPOINTS / str(steps_of(workdir)[-1])
    variables, optimizer = read_item(newest / VARIABLES), read_item(newest / OPTIMIZER)
    expected = by_name([variables, optimizer])
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    sizes = [path.stat().st_size for path in files]
    counts: Counter[str] = Counter()
    for _ in range(flips):
        # Half of the flips choose a file first, because most bytes belong to the arrays.
        [path] = rng.choices(files, sizes if rng.random() < 0.5 else None)
        copy = path.with_name(f"{path.name}.whole")
        shutil.copy2(path, copy)
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        counts[_restored(workdir, variables, optimizer, expected)] += 1
        copy.replace(path)
    return dict(counts)


def _restored(
    workdir: Path, variables: Any, optimizer: Any, expected: dict[str, np.ndarray]
) -> str:
    try:
        restored = restore_newest(workdir, variables, optimizer)
    except UserError:
        return "refused"
    if restored.damaged:
        return "detected"
    found = by_name([restored.variables, restored.opt_state])
    same = all(np.array_equal(expected[name], found[name]) for name in expected)
    return "harmless" if same else "unnoticed"


if __name__ == "__main__":
    main()
