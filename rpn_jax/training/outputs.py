"""What a run writes. With several processes only process 0 writes, and the others do nothing here.

The other processes read the checkpoints, so all must see the same work directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from rpn_jax.config import CONFIG_FILE, Config, config_changes, load_config, save_config
from rpn_jax.console import say
from rpn_jax.errors import UserError
from rpn_jax.files import read_json, write_json
from rpn_jax.hosts.exchange import gather, is_main, wait_for_all
from rpn_jax.runtime import environment
from rpn_jax.structures import Variables
from rpn_jax.training.lock import lock_workdir
from rpn_jax.weights.checkpoints import Checkpoints
from rpn_jax.weights.trees import by_name, checksums, host_copy

ENVIRONMENT_FILE = "environment.json"
"""List of the commands and environments of a run: one entry for its start and each --resume."""


@contextmanager
def own_workdir(workdir: Path) -> Iterator[None]:
    """Create and lock the work directory for the block, see `lock_workdir`."""
    if not is_main():
        wait_for_all()
        yield
        return
    with lock_workdir(workdir):
        wait_for_all()
        yield


@contextmanager
def open_checkpoints(
    workdir: Path, keep_last: int, epoch_steps: int, best_by: str
) -> Iterator[Checkpoints | Unwritten]:
    """Open the checkpoints of a work directory for the block, see `Checkpoints`."""
    if not is_main():
        yield Unwritten()
        return
    with Checkpoints(workdir, keep_last, epoch_steps, best_by) as checkpoints:
        yield checkpoints


class Unwritten:
    """Stands for the `Checkpoints` in processes that do not write them."""

    def save(self, step: int, variables: Variables, opt_state: Any) -> None:
        """Do nothing."""

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Do nothing."""


def record(config: Config, workdir: Path, done: int, console: Console) -> None:
    """Write the config, and add to the record of commands and environments.

    Print what differs from the config and the devices of an earlier part of the run.
    """
    if not is_main():
        return
    path = workdir / CONFIG_FILE
    if path.exists():
        for key, old, new in config_changes(load_config(path), config):
            say(console, f"{key} was {old} in this run until now. It is {new} from here on.")
    save_config(config, path)
    path = workdir / ENVIRONMENT_FILE
    earlier = read_json(path) if path.exists() else []
    if isinstance(earlier, dict):  # Version 0.1 kept only the last part of a run.
        earlier = [earlier]
    if earlier:
        _say_other_devices(earlier[-1], console)
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    entry = {"first_step": done, "started": started, **environment()}
    write_json(path, [*earlier, entry])


def _say_other_devices(earlier: dict[str, Any], console: Console) -> None:
    """Print a line if the run continues on another number of processes or devices."""
    processes = earlier.get("processes", 1)  # Version 0.1 had no runs of several processes.
    devices = processes * earlier["devices"]
    if (processes, devices) == (jax.process_count(), jax.device_count()):
        return
    effects = "Sums are rounded in another order"
    if devices != jax.device_count():
        effects += ", and other anchors and boxes are sampled"
    say(
        console,
        f"the run had {devices} devices in {processes} processes until now. It has "
        f"{jax.device_count()} in {jax.process_count()} from here on. The order of the pictures "
        f"stays the same. {effects}.",
    )


def check_same_state(workdir: Path, step: int, variables: Variables) -> None:
    """Check that all processes start from the same step and the same weights.

    Raises:
      UserError: they do not. The message is the same in every process.
    """
    if jax.process_count() == 1:
        return
    states = gather((step, checksums(host_copy(by_name(variables)))))
    for process, (other_step, sums) in enumerate(states):
        if other_step != states[0][0]:
            raise UserError(
                f"--workdir {workdir}: process {process} finds the checkpoint of step {other_step} "
                f"in it, and process 0 that of step {states[0][0]}. Use a folder that all hosts "
                "share."
            )
        different = [name for name, value in sums.items() if value != states[0][1].get(name)]
        if different:
            raise UserError(
                f"'{different[0]}' has other initial weights in process {process} than in process "
                "0. Use the same config, weights and versions on all hosts."
            )
