"""A run on two simulated devices that resize the pictures themselves, beside one on the host."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rpn_jax.config import save_config


@pytest.fixture(scope="module")
def results(tiny_config, tmp_path_factory):
    """What `resizing_on_devices` found, by the way of resizing."""
    folder = tmp_path_factory.mktemp("resizing")
    config = replace(tiny_config, train=replace(tiny_config.train, epochs=1))
    save_config(config, folder / "config.json")
    script = Path(__file__).with_name("resizing_on_devices.py")
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(script.parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", script, folder / "config.json", folder],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json").read_text())
    assert results["devices"] == 2
    return results


def test_each_device_resizes_its_own_pictures(results):
    assert results["shard"] == [1, 1, 64, 64, 3]  # one of two devices, one picture


def losses_of(lines):
    return [[line["loss_rpn_cls"], line["loss_rpn_bbox"]] for line in lines if "loss" in line]


def test_the_losses_are_those_of_resizing_on_the_host(results):
    host, device = (losses_of(results["metrics"][name]) for name in ("host", "device"))
    assert len(host) == 3
    np.testing.assert_allclose(device, host, rtol=1e-2)


def test_the_same_seed_gives_the_same_run(results):
    once, twice = (losses_of(results["metrics"][name]) for name in ("device", "again"))
    assert once == twice


def test_the_evaluation_in_training_measures_the_same(results):
    host, device = (results["metrics"][name][-1] for name in ("host", "device"))
    assert host["AR@100"] == pytest.approx(device["AR@100"], abs=0.05)


def test_proposals_are_those_of_resizing_on_the_host(results):
    both = (results["proposals"][name] for name in ("host", "device"))
    for host, device in zip(*both, strict=True):
        count = min(len(host["scores"]), len(device["scores"]))
        assert count > 10
        assert abs(len(host["scores"]) - len(device["scores"])) <= 0.02 * count
        np.testing.assert_allclose(host["scores"][:count], device["scores"][:count], atol=0.01)
        np.testing.assert_allclose(host["boxes"][:10], device["boxes"][:10], atol=1.0)
