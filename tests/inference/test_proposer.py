"""Batches of inference: no larger than their pictures need."""

from __future__ import annotations

from dataclasses import replace

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
