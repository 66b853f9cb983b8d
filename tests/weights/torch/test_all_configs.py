"""Conversion, loading and proposals of a full-size file for each config of the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import rpn_jax
from rpn_jax.inference.results import PictureProposals
from rpn_jax.weights.torch import convert
from tests.reference_configs import ELEVEN
from tests.weights.torch.published import filled, golden_shapes

SIDE = 64
FIRST_OF_MODEL = {rpn_jax.load_config(name).model: name for name in reversed(ELEVEN)}
"""The first config of each model. The others differ in their training only."""


@pytest.mark.parametrize("name", ELEVEN)
def test_a_published_file_converts_loads_and_proposes(name: str, tmp_path: Path) -> None:
    arrays = filled(golden_shapes(name))
    state_dict = {key: torch.from_numpy(array) for key, array in arrays.items()}
    meta = {"epoch": 12, "mmdet_version": "2.0.0"}
    torch.save({"meta": meta, "state_dict": state_dict}, tmp_path / f"{name}.pth")

    report = convert(str(tmp_path / f"{name}.pth"), tmp_path / "weights", config_name=name)

    assert set(report.left_out) == {key for key in arrays if key.endswith("num_batches_tracked")}
    variables = rpn_jax.load_variables(tmp_path / "weights")
    kernel = arrays["rpn_head.rpn_conv.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(variables["params"]["rpn_head"]["rpn_conv"]["kernel"], kernel)
    if name not in FIRST_OF_MODEL.values():
        return  # Its weights and its model are those of another config, which proposes.
    proposals = propose_one(name, variables)
    assert 0 < len(proposals.scores) <= 1000
    assert np.isfinite(proposals.boxes_xyxy).all()
    assert proposals.boxes_xyxy.max() <= SIDE


def propose_one(name: str, variables: dict) -> PictureProposals:
    config = rpn_jax.load_config(name)
    data = replace(config.data, scale=(SIDE, SIDE), buckets=((SIDE, SIDE),))
    config = replace(
        config,
        data=data,
        rpn_proposals=replace(config.rpn_proposals, nms_pre=200, max_proposals=1000),
    )
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return rpn_jax.Proposer(config, variables)([picture])[0]
