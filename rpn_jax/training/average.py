"""The moving average of the parameters (EMA) in a run and in its checkpoints.

A checkpoint's ``variables`` hold the average, so that everything that reads weights uses it. The
parameters that training continues from are stored with the optimiser's state.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from rpn_jax.structures import Variables
from rpn_jax.training.step import TrainState, averaged_variables, continued_state

SavedParts = tuple[Variables, Any]
"""The variables and the optimiser's state of a checkpoint."""


def with_average(state: TrainState, ema_decay: float) -> TrainState:
    """Return a new run's state with an average of its parameters, if ``ema_decay`` is not 0."""
    if ema_decay == 0:
        return state
    # A copy, because the step reuses the memory of both.
    copies = jax.tree.map(lambda x: jnp.array(x, copy=True), state.variables["params"])
    return replace(state, average=copies)


def saved_parts(state: TrainState) -> SavedParts:
    """Return what a checkpoint stores. `state_of` is the inverse."""
    if state.average is None:
        return state.variables, state.opt_state
    return averaged_variables(state), (state.opt_state, state.variables["params"])


def state_of(step: int, parts: SavedParts, ema_decay: float) -> TrainState:
    """Return the state of a checkpoint after ``step`` steps."""
    variables, stored = parts
    if ema_decay == 0:
        return continued_state(step, variables, stored)
    opt_state, params = stored
    state = continued_state(step, {**variables, "params": params}, opt_state)
    return replace(state, average=variables["params"])
