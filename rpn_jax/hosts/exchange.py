"""What the processes of a run exchange. With one process, every function returns at once."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")

ALL_BATCHES = slice(None)


def is_main() -> bool:
    """Return whether this process writes files and prints: process 0, or the only one."""
    return jax.process_index() == 0


def own_positions(batch_size: int) -> range:
    """Return the positions of a batch that this process loads: a block of equal size for each.

    Args:
      batch_size: number of pictures over all processes, a multiple of their number.
    """
    size = batch_size // jax.process_count()
    return range(jax.process_index() * size, (jax.process_index() + 1) * size)


def own_batches() -> slice:
    """Return which batches of an evaluation this process computes: every n-th one."""
    return slice(jax.process_index(), None, jax.process_count())


def place(tree: T, sharding: NamedSharding) -> T:
    """Put this process's part of global arrays on its devices, without waiting.

    Args:
      tree: NumPy arrays. For a replicated sharding, each process holds the whole arrays.
      sharding: placement of the global arrays.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    shape_of = (lambda x: x.shape) if sharding.is_fully_replicated else (lambda x: None)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x), shape_of(x)), tree
    )


def fetch(array: jax.Array) -> np.ndarray:
    """Return a global array as NumPy. All processes must call this together."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def on_own_device(tree: T) -> T:
    """Return replicated global arrays as arrays of this process alone."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def gather(value: T) -> list[T]:
    """Return the values of all processes, in their order. All processes must call this together.

    The values can be any Python objects of this package.
    """
    if jax.process_count() == 1:
        return [value]
    own = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(own.size, np.int32))
    padded = np.pad(own, (0, int(sizes.max()) - own.size))
    rows = multihost_utils.process_allgather(padded)
    return [
        pickle.loads(np.asarray(row[:size]).tobytes())
        for row, size in zip(rows, sizes, strict=True)
    ]


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in process 0 first, and then in the others, which find its files."""
    if not is_main():
        wait_for_all()
    yield
    if is_main():
        wait_for_all()


def wait_for_all() -> None:
    """Wait until every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("rpn_jax")


class Vote:
    """Lets all processes take the same decision after the same step.

    The decision is True if one process wants it. With several processes it is that of the previous
    call, so that no process waits for the devices.
    """

    def __init__(self) -> None:
        self._earlier: jax.Array | None = None

    def __call__(self, wanted: bool) -> bool:
        """Return the decision. All processes must call this equally often."""
        if jax.process_count() == 1:
            return wanted
        decision = self._earlier is not None and bool(self._earlier)
        own = np.full(jax.local_device_count(), wanted)
        self._earlier = _any()(place(own, _over_devices(PartitionSpec("all"))))
        return decision

    def forget(self) -> None:
        """Drop the decision of the previous call. All processes must do so together."""
        self._earlier = None


@cache
def _over_devices(spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.devices()), ("all",)), spec)


@cache
def _any() -> Any:
    return jax.jit(partial(jax.numpy.any), out_shardings=_over_devices(PartitionSpec()))
