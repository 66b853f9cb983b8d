"""The training step: one update of the state from one batch, on all devices of all processes.

This file names no model. The caller passes a loss function and an optimiser. `make_step` holds the
project's only `pmap`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from rpn_jax.devices import device_mesh, devices_for_batch
from rpn_jax.hosts.exchange import place
from rpn_jax.structures import Batch, Variables
from rpn_jax.training.gradients import DEVICE_AXIS, LossFunction, Metrics, batch_gradient

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes."""

    step: Int[Array, ""]
    """Number of finished steps."""
    variables: Variables
    """Parameters and statistics."""
    opt_state: optax.OptState
    """The optimiser's state."""
    failed: Bool[Array, ""]
    """Whether a loss or gradient was not finite. Such a step and all later ones change nothing, so
    that the step can be examined with the state before it."""
    average: Any = None
    """Moving average of the parameters, or None."""


StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
"""(state, batch) -> the new state, and the step's figures."""


def initial_state(variables: Variables, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step."""
    # One program to compile, instead of one for each shape.
    return continued_state(0, variables, jax.jit(optimizer.init)(variables["params"]))


def continued_state(step: int, variables: Variables, opt_state: optax.OptState) -> TrainState:
    """Return the state after ``step`` steps."""
    return TrainState(jnp.asarray(step, jnp.int32), variables, opt_state, jnp.zeros((), bool))


def averaged_variables(state: TrainState) -> Variables:
    """Return the variables to evaluate: with the moving average of the parameters, if any."""
    if state.average is None:
        return state.variables
    return {**state.variables, "params": state.average}


def make_step(
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
    devices: Sequence[jax.Device],
    ema_decay: float = 0.0,
    gradient_parts: int = 1,
) -> jax.stages.Wrapped:
    """Return a `pmap`-ed function that runs one training step on ``devices``.

    The batch's arrays have a leading axis of devices. The state is the same on all devices, and its
    memory is reused (donated). Gradients are averaged over the devices. The random key of a device
    depends only on the seed, the step and the device's position. If the state has an average, it
    becomes ``ema_decay * average + (1 - ema_decay) * parameters`` after the update. A device takes
    its pictures in ``gradient_parts`` equal parts. Each part updates the statistics in its turn.

    Returns:
      A function that returns the new state and these scalars: ``loss``, each scalar of the loss
      function, ``grad_norm`` (before clipping) and ``learning_rate``. If ``loss`` or ``grad_norm``
      is not finite, the new state is the old one, with ``failed`` set.
    """
    return jax.pmap(
        device_step(loss_function, optimizer, schedule, seed, ema_decay, gradient_parts),
        axis_name=DEVICE_AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),
        donate_argnums=0,
        devices=devices,
    )


def device_step(
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
    ema_decay: float = 0.0,
    gradient_parts: int = 1,
) -> StepFunction:
    """Return the part of `make_step` that each device runs, inside the axis `DEVICE_AXIS`."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        rng = jax.random.fold_in(rng, jax.lax.axis_index(DEVICE_AXIS))

        params = state.variables["params"]
        grads, scalars, variables = batch_gradient(
            loss_function, state.variables, batch, rng, gradient_parts
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        grad_norm = optax.tree.norm(grads)
        metrics = {**scalars, "grad_norm": grad_norm, "learning_rate": schedule(state.step)}
        params = optax.apply_updates(params, updates)
        average = None
        if state.average is not None:
            # In this form, the average of a parameter that does not change keeps its bits.
            average = jax.tree.map(
                lambda new, old: old + (1 - ema_decay) * (new - old), params, state.average
            )
        variables = {**variables, "params": params}
        failed = state.failed | ~(jnp.isfinite(scalars["loss"]) & jnp.isfinite(grad_norm))
        finished = TrainState(state.step + 1, variables, opt_state, failed, average)
        unchanged = replace(state, failed=failed)
        return jax.tree.map(partial(jnp.where, failed), unchanged, finished), metrics

    return step


def replicate(state: TrainState, devices: Sequence[jax.Device]) -> TrainState:
    """Copy a state to every one of the devices."""
    return place(state, NamedSharding(device_mesh(DEVICE_AXIS, devices), PartitionSpec()))


def split_batch(batch: Batch) -> Batch:
    """Start to send this process's part of a batch to its `devices_for_batch`.

    Each device gets the same number of pictures, in order.
    """
    processes = jax.process_count()
    devices = devices_for_batch(processes * batch.indices.shape[0])
    own = len(devices) // processes
    split = jax.tree.map(lambda x: x.reshape(own, -1, *x.shape[1:]), batch)
    return place(split, batch_sharding(devices))


def batch_sharding(devices: Sequence[jax.Device]) -> NamedSharding:
    """Return the placement of a batch with a leading axis of devices."""
    return NamedSharding(device_mesh(DEVICE_AXIS, devices), PartitionSpec(DEVICE_AXIS))
