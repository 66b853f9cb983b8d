"""Losses of a batch and their gradient, on one device or averaged over several.

A device can take the pictures of its batch in parts, one after the other (gradient accumulation).
It then holds the activations of one part at a time. The result is that of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rpn_jax.devices import devices_for_batch
from rpn_jax.errors import UserError
from rpn_jax.models.means import Mean, divide, divisors_of
from rpn_jax.structures import Batch, Variables

DEVICE_AXIS = "devices"
"""Name of the `pmap` axis."""

Metrics = dict[str, Any]
"""Scalars by name."""

LossFunction = Callable[
    [Variables, Batch, jax.Array, int | jax.Array], tuple[dict[str, Mean], Variables]
]
"""(variables, pictures, random key, index of the first picture in the device's batch) -> means by
name, and the variables with the statistics that the pictures updated.

The means whose names begin with "loss" are added up, as in MMDetection. The others are only logged.
Runs inside the `pmap` axis `DEVICE_AXIS`."""


def check_parts(parts: int, batch_size: int) -> None:
    """Raise a UserError if a device cannot take its pictures of a batch in that many parts."""
    devices = len(devices_for_batch(batch_size))
    pictures = batch_size // devices
    if pictures % parts:
        raise UserError(
            f"train.gradient_parts = {parts}: must divide {pictures}, the number of pictures of "
            f"each device (data.batch_size = {batch_size} on {devices} devices)."
        )


def batch_gradient(
    loss_function: LossFunction, variables: Variables, batch: Batch, rng: jax.Array, parts: int
) -> tuple[Any, Metrics, Variables]:
    """Return the gradient of a batch's losses, the scalars of the log, and new statistics.

    Args:
      loss_function: the losses.
      variables: parameters, and statistics for the loss function.
      batch: the pictures of this device.
      rng: random key of this device.
      parts: number of equal parts in which this device takes its pictures.

    Returns:
      gradient: of the sum of the losses, like ``variables["params"]``, averaged over the devices.
      scalars: ``loss``, the sum, and each mean of the loss function, averaged over the devices.
      variables: with the statistics that the loss function updated.
    """
    if parts == 1:
        gradient, scalars, variables = _gradient(loss_function, variables, batch, rng)
    else:
        gradient, scalars, variables = _gradient_by_parts(
            loss_function, variables, batch, rng, parts
        )
    gradient, scalars = jax.lax.pmean((gradient, scalars), DEVICE_AXIS)
    return gradient, scalars, variables


def _gradient_by_parts(
    loss_function: LossFunction, variables: Variables, batch: Batch, rng: jax.Array, parts: int
) -> tuple[Any, Metrics, Variables]:
    """Return what `_gradient` returns for the whole batch, from one part after the other.

    Each total is divided by a number of the whole batch, so a first pass adds up the divisors. It
    computes only what they need: for an RPN the targets, for a Faster R-CNN the proposals too.
    """
    split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
    firsts = jnp.arange(parts) * split.indices.shape[1]

    def divisors_of_part(part: tuple[Batch, jax.Array]) -> dict[str, jax.Array]:
        pictures, first = part
        means, _ = loss_function(variables, pictures, rng, first)
        return divisors_of(means)

    divisors = jax.tree.map(jnp.sum, jax.lax.map(divisors_of_part, (split, firsts)))
    divisors = jax.lax.pmean(divisors, DEVICE_AXIS)

    def add(done: tuple[Any, Variables], part: tuple[Batch, jax.Array]) -> Any:
        gradient, variables = done
        pictures, first = part
        of_part, scalars, variables = _gradient(
            loss_function, variables, pictures, rng, first, divisors
        )
        return (jax.tree.map(jnp.add, gradient, of_part), variables), scalars

    start = jax.tree.map(jnp.zeros_like, variables["params"]), variables
    (gradient, variables), scalars = jax.lax.scan(add, start, (split, firsts))
    return gradient, jax.tree.map(jnp.sum, scalars), variables


def _gradient(
    loss_function: LossFunction,
    variables: Variables,
    pictures: Batch,
    rng: jax.Array,
    first: int | jax.Array = 0,
    divisors: dict[str, jax.Array] | None = None,
) -> tuple[Any, Metrics, Variables]:
    """Return the gradient, scalars and variables of some pictures.

    ``divisors`` divide the totals of the loss function. None: its own divisors.
    """

    def total_loss(params: Any) -> tuple[jax.Array, tuple[Metrics, Variables]]:
        means, updated = loss_function({**variables, "params": params}, pictures, rng, first)
        used = divisors_of(means, DEVICE_AXIS) if divisors is None else divisors
        scalars = divide(means, used)
        losses = [value for name, value in scalars.items() if name.startswith("loss")]
        loss = sum(losses, jnp.zeros(()))
        return loss, ({"loss": loss, **scalars}, updated)

    gradient, (scalars, updated) = jax.grad(total_loss, has_aux=True)(variables["params"])
    return gradient, scalars, updated
