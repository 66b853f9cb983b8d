"""Weights & Biases and MLflow, in their offline modes. Skipped where they are not installed."""

import io
import math
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from rpn_jax.config import Config
from rpn_jax.errors import UserError
from rpn_jax.training import trackers
from rpn_jax.training.log import RunLog
from rpn_jax.training.trackers import open_trackers

PACKAGES = pytest.mark.filterwarnings("ignore")
"""Warnings of these packages are about themselves."""


def optional(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def log_two_parts(names, workdir):
    """Log a step and an evaluation, and then another step after a resume."""
    for first_step in (0, 1):
        opened = open_trackers(names, Config(name="tiny"), workdir)
        console = Console(file=io.StringIO())
        with RunLog(workdir, console, 2, 3, first_step, 8, 1, opened) as log:
            log.step(first_step, {"loss": 4.0 - first_step, "learning_rate": 0.1})
            if first_step == 0:
                log.evaluated(1, {"AR@100": 0.5, "AR_small@1000": math.nan})


@PACKAGES
def test_mlflow_has_the_figures_of_both_parts_in_one_run(tmp_path, monkeypatch):
    mlflow = optional("mlflow")
    optional("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log_two_parts(("mlflow",), tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("rpn_jax")
    [run] = client.search_runs([experiment.experiment_id])
    losses = client.get_metric_history(run.info.run_id, "training/loss")
    assert [(metric.step, metric.value) for metric in losses] == [(1, 4.0), (2, 3.0)]
    assert run.data.metrics["evaluation/AR_at_100"] == 0.5
    assert "evaluation/AR_small_at_1000" not in run.data.metrics
    assert run.info.status == "FINISHED"


@PACKAGES
def test_wandb_writes_both_parts_offline_with_one_id(tmp_path, monkeypatch):
    optional("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_two_parts(("wandb",), tmp_path)
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) >= 1
    assert len({Path(file).stem for file in files}) == 1
    content = b"".join(file.read_bytes() for file in files)
    for name in (b"training/loss", b"evaluation/AR@100", b"tiny"):
        assert name in content
    assert b"AR_small@1000" not in content


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(trackers.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"--wandb: the package wandb .* 'rpn-jax\[wandb\]'"):
        open_trackers(("wandb",), Config(), tmp_path)


def test_no_record_is_opened_if_the_second_package_is_missing(tmp_path, monkeypatch):
    class Package:
        def init(self, **_):
            pytest.fail("a record of Weights & Biases was opened")

    def import_module(name):
        if name == "mlflow":
            raise ImportError("No module named 'mlflow'")
        return Package()

    monkeypatch.setattr(trackers.importlib, "import_module", import_module)
    with pytest.raises(UserError, match="--mlflow: the package mlflow"):
        open_trackers(("wandb", "mlflow"), Config(), tmp_path)
