"""The training step, compiled once a canvas, and the loop around it.

Nothing here knows a model: a run is told by its loss function, its optimiser and its batches.
`make_step` holds the project's only `pmap`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rpn_jax.errors import UserError
from rpn_jax.structures import Batch, Variables

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

DEVICE_AXIS = "devices"
"""Name of the `pmap` axis."""

Metrics = dict[str, Any]
LossFunction = Callable[[Variables, Batch, jax.Array], tuple[Metrics, Variables]]
"""(variables, a device's batch, rng) -> loss terms to add up, and the variables with whatever
statistics the batch updated. Runs inside the `pmap` axis `DEVICE_AXIS`."""

CompiledSteps = dict[tuple[int, int], jax.stages.Compiled]
"""The compiled step of each canvas (height, width)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a step changes."""

    step: Int[Array, ""]
    """Steps done."""
    variables: Variables
    """Parameters and statistics."""
    opt_state: optax.OptState
    """The optimiser's memory."""


StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
"""(state, batch) -> the new state, and the step's figures."""


class Observer(Protocol):
    """Whom the loop tells how it goes; `rpn_jax.training.log` shows and keeps it."""

    def compiling(self, canvas: tuple[int, int], number: int, total: int) -> None:
        """Compilation for a canvas (height, width) starts."""

    def compiled(self, seconds: float) -> None:
        """It took this long."""

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Step number ``step``, from 0, is done."""


def initial_state(variables: Variables, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), variables, optimizer.init(variables["params"]))


def make_step(
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
) -> jax.stages.Wrapped:
    """One step of training over all local devices, as a `pmap`-ed function.

    The batch's arrays have a leading axis of devices; the state is the same on all of them and is
    donated. Gradients are averaged over devices. The sampling of a step depends on (seed, step,
    device) alone.

    Returns:
      A function to the new state and the scalars ``loss``, each loss term, ``grad_norm`` (before
      clipping) and ``learning_rate``.
    """
    return jax.pmap(
        device_step(loss_function, optimizer, schedule, seed),
        axis_name=DEVICE_AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),
        donate_argnums=0,
    )


def device_step(
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
) -> StepFunction:
    """What each device does in a step of `make_step`, inside the axis `DEVICE_AXIS`."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        rng = jax.random.fold_in(rng, jax.lax.axis_index(DEVICE_AXIS))

        def total_loss(params: Any) -> tuple[Float[Array, ""], tuple[Metrics, Variables]]:
            terms, variables = loss_function({**state.variables, "params": params}, batch, rng)
            return sum(terms.values(), jnp.zeros(())), (terms, variables)

        params = state.variables["params"]
        (loss, (terms, variables)), grads = jax.value_and_grad(total_loss, has_aux=True)(params)
        loss, terms, grads = jax.lax.pmean((loss, terms, grads), DEVICE_AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        metrics = {
            "loss": loss,
            **terms,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
        }
        variables = {**variables, "params": optax.apply_updates(params, updates)}
        return TrainState(state.step + 1, variables, opt_state), metrics

    return step


def compile_steps(
    step: jax.stages.Wrapped,
    state: TrainState,
    batch_shapes: Sequence[Batch],
    observer: Observer,
) -> CompiledSteps:
    """Compile the step for every canvas, by (height, width).

    Args:
      step: what `make_step` returned.
      state: a state of the run's shapes.
      batch_shapes: a `Batch` of `jax.ShapeDtypeStruct` for each canvas, without device axis.
      observer: is told what is compiled, and how long it took.
    """
    state_shapes = jax.eval_shape(lambda: state)
    compiled: CompiledSteps = {}
    for number, shapes in enumerate(batch_shapes, start=1):
        canvas = (int(shapes.images.shape[1]), int(shapes.images.shape[2]))
        observer.compiling(canvas, number, len(batch_shapes))
        start = time.perf_counter()
        compiled[canvas] = step.lower(state_shapes, _split_shapes(shapes)).compile()
        observer.compiled(time.perf_counter() - start)
    return compiled


def device_mesh() -> Mesh:
    """All local devices in a row."""
    return Mesh(np.array(jax.local_devices()), (DEVICE_AXIS,))


def replicate(state: TrainState) -> TrainState:
    """Put a state on every local device."""
    return jax.device_put(state, NamedSharding(device_mesh(), PartitionSpec()))


def split_batch(batch: Batch) -> Batch:
    """Start sending a batch to the devices, its pictures split evenly among them in order.

    Raises:
      UserError: the number of pictures is no multiple of the number of devices.
    """
    devices = jax.local_device_count()
    check_divisible("data.batch_size", batch.indices.shape[0])
    sharding = NamedSharding(device_mesh(), PartitionSpec(DEVICE_AXIS))
    split = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
    return jax.device_put(split, sharding)


def check_divisible(key: str, pictures: int) -> None:
    """Refuse a batch that the devices cannot share evenly, naming its key."""
    devices = jax.local_device_count()
    if pictures % devices:
        raise UserError(f"{key} = {pictures}: must be a multiple of the {devices} devices in use")


def run_steps(
    compiled: CompiledSteps,
    state: TrainState,
    batches: Iterator[Batch],
    first_step: int,
    steps: int,
    observer: Observer,
    picture_names: Callable[[np.ndarray], list[str]],
    should_stop: Callable[[], bool],
) -> TrainState:
    """Run ``steps`` steps on batches that are on the devices already.

    They are fewer if asked to stop, or where the batches end. A step's figures are read while the
    next one runs, so the devices never wait for the host.

    Raises:
      UserError: a step's loss or gradient is not finite; names the step and its pictures.
    """
    pending: tuple[int, Metrics, Batch] | None = None
    for step, batch in zip(range(first_step, first_step + steps), batches, strict=False):
        _, _, height, width, _ = batch.images.shape
        state, metrics = compiled[height, width](state, batch)
        if pending is not None:
            _report(*pending, observer, picture_names)
        pending = (step, metrics, batch)
        if should_stop():
            break
    if pending is not None:
        _report(*pending, observer, picture_names)
    return state


def _report(
    step: int,
    metrics: Metrics,
    batch: Batch,
    observer: Observer,
    picture_names: Callable[[np.ndarray], list[str]],
) -> None:
    values = {key: float(value) for key, value in jax.device_get(metrics).items()}
    # A gradient can overflow where the loss does not yet; these pictures did it, not the next.
    for key in ("loss", "grad_norm"):
        if not math.isfinite(values[key]):
            names = ", ".join(picture_names(np.asarray(batch.indices).reshape(-1)))
            raise UserError(
                f"step {step}: {key} is {values[key]} on the pictures {names}; try a lower "
                "optim.learning_rate, a longer optim.warmup_steps or an optim.clip_norm"
            )
    observer.step(step, values)


def _split_shapes(shapes: Batch) -> Batch:
    devices = jax.local_device_count()
    check_divisible("data.batch_size", shapes.images.shape[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((devices, x.shape[0] // devices, *x.shape[1:]), x.dtype),
        shapes,
    )
