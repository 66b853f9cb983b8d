"""Test that batches of inference are no larger than their pictures need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import Array

from rpn_jax import Proposer, init_variables
from rpn_jax.config import Config
from rpn_jax.inference import proposer
from rpn_jax.structures import Proposals, Variables


@pytest.mark.parametrize(("pictures", "batch"), [(1, 1), (3, 4), (5, 4)])
def test_few_pictures_do_not_pay_for_a_whole_batch(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, pictures: int, batch: int
) -> None:
    config = replace(tiny_config, data=replace(tiny_config.data, eval_batch_size=4))
    seen: list[int] = []
    make = proposer.make_propose_function

    def watched(config: Config) -> proposer.ProposeFunction:
        function = make(config)

        def propose(variables: Variables, images: Array, *rest: Array) -> Proposals:
            seen.append(len(images))
            return function(variables, images, *rest)

        return propose

    monkeypatch.setattr(proposer, "make_propose_function", watched)
    found = Proposer(config, init_variables(config))([np.zeros((64, 64, 3), np.uint8)] * pictures)
    assert len(found) == pictures
    devices = jax.local_device_count()
    assert set(seen) == {-(-batch // devices) * devices}


@pytest.mark.parametrize("backbone", ["resnet", "resnext"])
def test_devices_share_a_batch_without_communication(backbone: str) -> None:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.inference.devices_program", backbone],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["devices"] == 4
    assert figures["collectives"] == 0
    # The pattern that counts them finds those of a program without shard_map.
    assert figures["collectives_without_shard_map"] > 0
    assert figures["valid"] > 100
    assert figures["same_boxes"]
