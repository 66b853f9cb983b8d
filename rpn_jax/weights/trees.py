"""Trees of arrays: their leaves by name, compared with what is expected, and in folders of orbax.

Everything is stored as NumPy arrays, so nothing depends on the number or kind of devices.
"""

from __future__ import annotations

import functools
import logging
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from rpn_jax.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

Tree = TypeVar("Tree")


def check_variables(expected: Any, variables: Any, folder: str | Path) -> None:
    """Compare weights with the model that they are meant for.

    Args:
      expected: nested dicts of arrays or shapes, as the model has them.
      variables: what was read.
      folder: where from, for the message.

    Raises:
      UserError: missing, unexpected or differently shaped weights; names the first of each.
    """
    check_arrays(by_name(expected), by_name(variables), f"weights {folder}: are of another model")


def check_arrays(expected: dict[str, Any], found: dict[str, Any], opening: str) -> None:
    """Compare named arrays by their shapes; a difference is a UserError that begins so."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    reshaped = [
        name
        for name in expected
        if name in found and tuple(found[name].shape) != tuple(expected[name].shape)
    ]
    complaints = []
    if reshaped:
        name = reshaped[0]
        complaints.append(
            f"{_public(name)} has shape {tuple(found[name].shape)}, the config needs "
            f"{tuple(expected[name].shape)}{_and_others(reshaped)}"
        )
    if missing:
        complaints.append(f"{_public(missing[0])} is missing{_and_others(missing)}")
    if unexpected:
        complaints.append(f"{_public(unexpected[0])} is unexpected{_and_others(unexpected)}")
    if complaints:
        raise UserError(f"{opening}: {'; '.join(complaints)}")


def _and_others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _public(name: str) -> str:
    return name.removeprefix("params.")


def by_name(tree: Any) -> dict[str, Any]:
    """The leaves of any tree by their dotted path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def in_structure(tree: Tree, named: dict[str, Any]) -> Tree:
    """``named`` leaves in the structure of ``tree``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: named[jax.tree_util.keystr(path, simple=True, separator=".")], tree
    )


def host_copy(tree: Tree) -> Tree:
    """NumPy copies of the leaves: the training step donates its buffers while they are written."""
    return jax.tree.map(np.array, tree)


def read_item(folder: Path) -> Any:
    """The tree that `write_item` or a checkpoint put into a folder.

    Raises:
      UserError: it is damaged.
    """
    import orbax.checkpoint as ocp

    quieten_orbax()
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            return checkpointer.restore(folder.resolve())
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"checkpoint {folder}: is damaged and cannot be read ({reason})") from None


def write_item(folder: Path, tree: Any) -> None:
    """Write a tree of NumPy arrays into a folder, which orbax makes."""
    import orbax.checkpoint as ocp

    quieten_orbax()
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(folder.resolve(), args=ocp.args.StandardSave(tree))


@functools.cache
def quieten_orbax() -> None:
    """Keep orbax from writing on the screen: what fails is raised as well, for us to tell.

    It warns through absl of what is meant here too, as a save without metrics.
    """
    logging.getLogger("absl").addFilter(_is_no_orbax_chatter)
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not _comes_after_a_failure(unraisable):
            before(unraisable)

    sys.unraisablehook = hook


def _is_no_orbax_chatter(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _comes_after_a_failure(unraisable: sys.UnraisableHookArgs) -> bool:
    """An array's end is reported to an event loop which the failure of another one has closed."""
    trace = unraisable.exc_traceback
    from_outside = trace is not None and trace.tb_frame.f_code.co_name == "call_soon_threadsafe"
    return from_outside and str(unraisable.exc_value) == "Event loop is closed"
