"""What a run writes. With several processes only process 0 writes, and the others do nothing here.

The other processes read the checkpoints, so all must see the same work directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from rpn_jax.config import CONFIG_FILE, Config, config_changes, load_config, save_config
from rpn_jax.console import say
from rpn_jax.errors import UserError
from rpn_jax.files import read_json, write_json
from rpn_jax.hosts.exchange import is_main, wait_for_all
from rpn_jax.runtime import environment
from rpn_jax.structures import Variables
from rpn_jax.training.lock import lock_workdir
from rpn_jax.weights.checkpoints import Checkpoints

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

    Print what differs from the config and the devices of an earlier part of the run. The config
    keeps the initial weights of the first part, because a run that continues does not load others.
    """
    if not is_main():
        return
    path = workdir / CONFIG_FILE
    if path.exists():
        stored = load_config(path)
        given, used = config.train.init_weights, stored.train.init_weights
        if given and given != used:
            say(console, f"train.init_weights = {given!r} has no effect: the run has begun.")
        config = replace(config, train=replace(config.train, init_weights=used))
        for key, old, new in config_changes(stored, config):
            say(console, f"{key} was {old!r} in this run until now. It is {new!r} from here on.")
    save_config(config, path)
    path = workdir / ENVIRONMENT_FILE
    earlier = _earlier_parts(path)
    if earlier:
        _say_other_devices(earlier[-1], console)
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    entry = {"first_step": done, "started": started, **environment()}
    write_json(path, [*earlier, entry])


def _earlier_parts(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's record.

    Raises:
      UserError: the record is damaged.
    """
    remedy = "Move the file away. The run then continues without the record of its earlier parts."
    try:
        entries = read_json(path) if path.exists() else []
    except UserError as error:
        raise UserError(f"{error}. {remedy}") from None
    if isinstance(entries, dict):  # Version 0.1 kept only the last part of a run.
        return [entries]
    is_list = isinstance(entries, list)
    if not is_list or not all(isinstance(each, dict) and "devices" in each for each in entries):
        raise UserError(f"{path}: is not a list of environments. {remedy}")
    return entries


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
