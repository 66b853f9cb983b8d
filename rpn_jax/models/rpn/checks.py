"""The check that outputs of the RPN head fit a config and other arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rpn_jax.config import Config
from rpn_jax.ops.checks import check_shapes
from rpn_jax.structures import RPNOutputs


def check_outputs(
    function: str,
    config: Config,
    outputs: RPNOutputs,
    others: Mapping[str, tuple[Any, str]],
) -> None:
    """Check the shapes of outputs and of other arguments, which are given as in `check_shapes`.

    Raises:
      UserError: an array has other axes than it must have.
    """
    arguments = {}
    for level, logits in enumerate(outputs.objectness):
        arguments[f"outputs.objectness[{level}]"] = (logits, f"B H{level} W{level} A")
    for level, deltas in enumerate(outputs.deltas):
        arguments[f"outputs.deltas[{level}]"] = (deltas, f"B H{level} W{level} A 4")
    check_shapes(function, {**arguments, **others}, A=config.model.rpn.anchors.per_cell)
