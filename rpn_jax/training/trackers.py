"""Send the figures of a run to Weights & Biases or MLflow. Both packages are optional.

Their own environment variables choose the server or the offline mode: ``WANDB_MODE``,
``WANDB_PROJECT``, ``MLFLOW_TRACKING_URI`` and so on. A resumed run continues the same record.
"""

from __future__ import annotations

import importlib
import math
import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from rpn_jax.config import Config
from rpn_jax.config.files import config_values
from rpn_jax.errors import UserError
from rpn_jax.files import read_json, write_json

PROJECT = "rpn_jax"
"""Name of the project (W&B) or the experiment (MLflow), if no environment variable names one."""
RECORDS_FILE = "trackers.json"
"""File of a work directory with the ids of its records, to continue them."""


class Tracker(Protocol):
    """Receives the figures of a run."""

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Store figures after ``step`` steps."""

    def close(self) -> None:
        """Send what is left, and end the record."""


def open_trackers(names: tuple[str, ...], config: Config, workdir: Path) -> list[Tracker]:
    """Open a tracker for each name, 'wandb' or 'mlflow'. Continue the records of a resumed run.

    Raises:
      UserError: a package is not installed.
    """
    # Import all packages before the first record is opened.
    packages = {name: _import(name) for name in names}
    return [_open(name, package, config, workdir) for name, package in packages.items()]


class WandbTracker:
    """A run of Weights & Biases."""

    def __init__(self, wandb: ModuleType, config: Config, workdir: Path) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=workdir.name,
            dir=workdir,
            config=config_values(config),
            id=_record(workdir, "wandb"),
            resume="allow",
        )
        _keep_record(workdir, "wandb", self._run.id)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Store figures after ``step`` steps."""
        self._run.log(figures, step=step)

    def close(self) -> None:
        """Send what is left, and end the run."""
        self._run.finish()


class MlflowTracker:
    """A run of MLflow. The default store is the file ``mlflow.db`` of the work directory."""

    def __init__(self, mlflow: ModuleType, config: Config, workdir: Path) -> None:
        store = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{workdir.resolve()}/mlflow.db")
        self._mlflow = mlflow
        self._client = mlflow.MlflowClient(store)
        self._run_id = _record(workdir, "mlflow")
        if self._run_id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(name)
            experiment = (
                self._client.create_experiment(name) if found is None else found.experiment_id
            )
            run = self._client.create_run(experiment, run_name=workdir.name)
            self._run_id = run.info.run_id
            self._client.log_dict(self._run_id, config_values(config), "config.json")
            _keep_record(workdir, "mlflow", self._run_id)
        else:
            self._client.update_run(self._run_id, status="RUNNING")

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Store figures after ``step`` steps. MLflow allows no @ in names: it becomes ``_at_``."""
        now = int(time.time() * 1000)
        metrics = [
            self._mlflow.entities.Metric(name.replace("@", "_at_"), value, now, step)
            for name, value in figures.items()
        ]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._run_id)


def _open(name: str, package: ModuleType, config: Config, workdir: Path) -> Tracker:
    if name == "wandb":
        return WandbTracker(package, config, workdir)
    return MlflowTracker(package, config, workdir)


def finite(figures: dict[str, float]) -> dict[str, float]:
    """Return the figures that are numbers. Not every tracker takes NaN."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--{name}: the package {name} cannot be imported ({error}). Install it with pip "
            f"install 'rpn-jax[{name}]'."
        ) from None


def _record(workdir: Path, name: str) -> Any:
    path = workdir / RECORDS_FILE
    return read_json(path).get(name) if path.exists() else None


def _keep_record(workdir: Path, name: str, record: str) -> None:
    path = workdir / RECORDS_FILE
    records = read_json(path) if path.exists() else {}
    write_json(path, records | {name: record})
