"""Name the leaves of trees of arrays, compare their shapes, and store them in folders.

All arrays are stored as NumPy arrays, so a folder does not depend on the number or kind of devices.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from rpn_jax.errors import UserError

Tree = TypeVar("Tree")


class DamagedError(UserError):
    """A checkpoint or a folder of weights was changed after it was written, or is incomplete."""


def check_variables(expected: Any, variables: Any, folder: str | Path) -> None:
    """Check that weights have the names and shapes of a model's variables.

    Args:
      expected: the model's variables, nested dicts of arrays or shapes.
      variables: the weights.
      folder: source of the weights, for the error message.

    Raises:
      UserError: weights are missing, unexpected or have another shape. It names one of each.
    """
    check_collections(variables, f"weights {folder}")
    check_arrays(
        by_name(expected), by_name(variables), f"weights {folder}: do not match the config"
    )


def check_collections(variables: Any, opening: str) -> None:
    """Raise a UserError that begins with ``opening`` if variables have no 'params'."""
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise UserError(
            f"{opening}: have no 'params'. Give whole variables, as init_variables and "
            "load_variables return them"
        )


def check_arrays(expected: dict[str, Any], found: dict[str, Any], opening: str) -> None:
    """Raise a UserError that begins with ``opening`` if arrays differ in their names or shapes."""
    differences = shape_differences(_shapes(expected), _shapes(found))
    if differences:
        raise UserError(f"{opening}: {differences}")


def _shapes(arrays: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix("params."): tuple(arrays[name].shape) for name in arrays}


def shape_differences(
    expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]
) -> str:
    """Describe how named shapes differ. The text is empty if they are equal.

    It gives the first name of each kind (another shape, missing, unexpected) and counts the others.
    """
    kinds = [
        [
            f"'{name}' has shape {shape}, expected {expected[name]}"
            for name, shape in found.items()
            if name in expected and expected[name] != shape
        ],
        [f"'{name}' is missing" for name in expected if name not in found],
        [f"'{name}' is unexpected" for name in found if name not in expected],
    ]
    return "; ".join(
        kind[0] + (f" (and {len(kind) - 1} more)" if len(kind) > 1 else "")
        for kind in kinds
        if kind
    )


def by_name(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by their dotted paths."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def in_structure(tree: Tree, named: dict[str, Any]) -> Tree:
    """Return the leaves ``named`` in the structure of ``tree``; inverse of `by_name`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: named[jax.tree_util.keystr(path, simple=True, separator=".")], tree
    )


def host_copy(tree: Tree) -> Tree:
    """Copy the leaves to NumPy. The training step reuses its buffers while the copy is written."""
    return jax.tree.map(np.array, tree)


def checksums(tree: Any) -> dict[str, int]:
    """Return the CRC-32 of each leaf of a tree of NumPy arrays, by the leaf's dotted path.

    The dtype and the shape are part of it. The leaves are read in threads: one core reads about
    1 GB/s.
    """
    named = by_name(tree)
    with ThreadPoolExecutor() as threads:
        return dict(zip(named, threads.map(_checksum, named.values()), strict=True))


def _checksum(array: np.ndarray) -> int:
    start = zlib.crc32(f"{array.dtype.name}{array.shape}".encode())
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, start)


def read_item(folder: Path) -> Any:
    """Read the tree that `write_item` or a checkpoint wrote to a folder.

    Raises:
      DamagedError: the folder is damaged.
    """
    quieten_orbax()
    try:
        with ocp.Checkpointer(
            ocp.StandardCheckpointHandler(multiprocessing_options=by_itself()),
            multiprocessing_options=by_itself(),
        ) as checkpointer:
            return checkpointer.restore(folder.resolve())
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DamagedError(
            f"checkpoint {folder}: is damaged and cannot be read ({reason})"
        ) from None


def write_item(folder: Path, tree: Any) -> None:
    """Write a tree of NumPy arrays to a new folder, in this process alone.

    Raises:
      OSError: the folder cannot be written. Threads may still write to it for a while.
    """
    quieten_orbax()
    try:
        with ocp.Checkpointer(
            ocp.StandardCheckpointHandler(multiprocessing_options=by_itself()),
            multiprocessing_options=by_itself(),
        ) as checkpointer:
            checkpointer.save(folder.resolve(), args=ocp.args.StandardSave(tree))
    except ValueError as error:
        number = os_error_number(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number)) from None


def os_error_number(error: Exception) -> int | None:
    """Return the error number of the system in TensorStore's message, if it has one."""
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return int(number[1]) if number else None


def by_itself() -> ocp.options.MultiprocessingOptions:
    """Return options with which Orbax reads or writes in this process alone.

    By default it waits until all processes call it. Here only process 0 writes, and each process
    reads.
    """
    process = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"process_{process}",
    )


@functools.cache
def quieten_orbax() -> None:
    """Silence orbax's messages on the console. Every failure is raised as an exception too.

    The warnings that it logs through absl are about intended uses, such as a save without metrics.
    """
    logging.getLogger("absl").addFilter(_is_not_from_orbax)
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not _follows_a_failure(unraisable):
            before(unraisable)

    sys.unraisablehook = hook


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _follows_a_failure(unraisable: sys.UnraisableHookArgs) -> bool:
    """Return whether an exception only follows from an earlier failure.

    If one array cannot be read, orbax closes its event loop. The reads of other arrays then report
    to the closed loop.
    """
    trace = unraisable.exc_traceback
    from_outside = trace is not None and trace.tb_frame.f_code.co_name == "call_soon_threadsafe"
    return from_outside and str(unraisable.exc_value) == "Event loop is closed"
