"""Checkpoints of a training run, and folders of weights.

A run keeps ``WORKDIR/checkpoints/STEP/``, each with two items: ``variables`` (the model's) and
``optimizer`` (the optimiser's arrays by name), and ``metrics`` where it was evaluated. A folder of
weights holds ``config.json`` and ``variables``. Everything is stored as NumPy arrays by orbax, so
nothing depends on the number or kind of devices.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from rpn_jax.config import Config, config_changes, config_to_json, load_config
from rpn_jax.errors import UserError
from rpn_jax.output import make_folder

if TYPE_CHECKING:
    from types import TracebackType

    import orbax.checkpoint as ocp

BEST_BY = "AR@1000"
"""The metric by which a run's best checkpoint is told."""

CONFIG_FILE = "config.json"
CHECKPOINTS, VARIABLES, OPTIMIZER = "checkpoints", "variables", "optimizer"

SAME_FUNCTION = (
    "model.precision",
    "model.backbone.frozen_stages",
    "model.backbone.train_norm",
)
"""Keys of a model that may differ between weights and their use: they decide how it is trained and
rounded, not what it computes."""

Tree = TypeVar("Tree")


class Checkpoints:
    """The checkpoints of one work directory: the last few, and the best by `BEST_BY`.

    Saving copies the arrays and writes them in the background. A checkpoint gets its name only
    when it is whole, so a killed run leaves the one before it.

    Example::

      with Checkpoints(workdir, keep_last=2) as checkpoints:
          restored = checkpoints.restore_latest(variables, opt_state)
          ...
          checkpoints.save(step, variables, opt_state, metrics)
    """

    def __init__(self, workdir: Path, keep_last: int) -> None:
        """Open, or make, the checkpoints of a work directory.

        Args:
          workdir: folder of the run; made if missing.
          keep_last: checkpoints kept, beside the best one.

        Raises:
          UserError: a work directory that cannot be written.
        """
        make_folder(workdir)
        self.folder = workdir.resolve() / CHECKPOINTS
        self._manager = _manager(self.folder, keep_last)

    def latest_step(self) -> int | None:
        """The last step saved, None if there is none."""
        return self._manager.latest_step()

    def save(
        self, step: int, variables: Any, opt_state: Any, metrics: dict[str, float] | None
    ) -> None:
        """Start to save a step; waits only for the save before it.

        Args:
          step: steps done; above the last one saved.
          variables: nested dicts of arrays.
          opt_state: the optimiser's state, any tree of arrays.
          metrics: figures of an evaluation at this step, with `BEST_BY`; None without one.

        Raises:
          UserError: a step that is not above the last one saved.
        """
        import orbax.checkpoint as ocp

        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(_host_copy(variables)),
                optimizer=ocp.args.StandardSave(_by_name(_host_copy(opt_state))),
            ),
            metrics=metrics,
        )
        if not saved:
            raise UserError(
                f"checkpoints {self.folder}: step {step} is not above the last one there, "
                f"{self.latest_step()}; resume from it or choose another work directory"
            )

    def restore_latest(self, variables: Tree, opt_state: Any) -> tuple[int, Tree, Any] | None:
        """The last step saved with its variables and optimiser state, bit for bit.

        Args:
          variables: the expected tree, arrays or their shapes.
          opt_state: likewise.

        Returns:
          (step, variables, opt_state) with NumPy leaves; None if nothing was saved.

        Raises:
          UserError: a checkpoint of another model or optimiser, or a damaged one.
        """
        step = self.latest_step()
        if step is None:
            return None
        folder = self.folder / str(step)
        stored = _read_item(folder / VARIABLES)
        check_variables(variables, stored, folder)
        named = _read_item(folder / OPTIMIZER)
        _check_arrays(_by_name(opt_state), named, f"optimizer {folder}: is of another config")
        return step, _in_structure(variables, _by_name(stored)), _in_structure(opt_state, named)

    def wait(self) -> None:
        """Wait until the last save is on the disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and free what belongs to the background writing."""
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def save_variables(folder: str | Path, config: Config, variables: Any) -> None:
    """Write a folder of weights: ``config.json`` and ``variables``.

    The folder appears whole or not at all.

    Args:
      folder: a folder that does not exist yet.
      config: the config that the weights belong to.
      variables: nested dicts of arrays: ``params`` and, with batch statistics, ``batch_stats``.

    Raises:
      UserError: a folder that exists and is not empty, or that cannot be written.
    """
    folder = Path(folder)
    check_new_folder(folder)
    make_folder(folder.parent)
    temporary = folder.resolve().with_name(f".{folder.resolve().name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        config_to_json(config, temporary / CONFIG_FILE)
        _write_item(temporary / VARIABLES, _host_copy(variables))
        temporary.replace(folder)
    except OSError as error:
        raise UserError(f"weights {folder}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new_folder(folder: Path) -> None:
    """Refuse to write weights where something is already; raises UserError."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"weights {folder}: exists already; name a new folder or remove this one")


def load_variables(folder: str | Path) -> dict[str, Any]:
    """Read weights.

    Args:
      folder: a folder that `save_variables` wrote; or a work directory of training, of which the
        best checkpoint by `BEST_BY` is taken, or the last if none was evaluated; or one step's
        folder in its ``checkpoints``.

    Returns:
      ``params`` and, with batch statistics, ``batch_stats``: nested dicts of float32 NumPy arrays.

    Raises:
      UserError: no such folder, none of these kinds, or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"weights {folder}: no such folder")
    step_folder = _best_step_folder(folder) if (folder / CHECKPOINTS).is_dir() else folder
    if not (step_folder / VARIABLES).is_dir():
        raise UserError(
            f"weights {folder}: holds no weights; expected a folder that `convert` wrote, a work "
            "directory of `train`, or one step's folder in its checkpoints"
        )
    return _read_item(step_folder / VARIABLES)


def check_variables(expected: Any, variables: Any, folder: str | Path) -> None:
    """Compare weights with the model that they are meant for.

    Args:
      expected: nested dicts of arrays or shapes, as the model has them.
      variables: what was read.
      folder: where from, for the message.

    Raises:
      UserError: missing, unexpected or differently shaped weights; names the first of each.
    """
    _check_arrays(
        _by_name(expected), _by_name(variables), f"weights {folder}: are of another model"
    )


def check_same_model(
    config: Config, folder: str | Path, sections: tuple[str, ...] = ("model.", "pixels.")
) -> None:
    """Compare the config that weights were made with, where they hold it, with the one in use.

    Two models of equal shapes may differ in their strides' place, their pixels or their anchors.

    Args:
      config: in use.
      folder: of the weights.
      sections: what must be equal, as the openings of keys.

    Raises:
      UserError: they differ there, other than in `SAME_FUNCTION`.
    """
    folder = Path(folder)
    for path in (folder / CONFIG_FILE, folder.parent.parent / CONFIG_FILE):
        if path.is_file():
            for key, theirs, ours in config_changes(load_config(path), config):
                if key.startswith(sections) and key not in SAME_FUNCTION:
                    raise UserError(
                        f"weights {folder}: are of another model: {key} is {theirs!r} there and "
                        f"{ours!r} in the config"
                    )
            return


def _check_arrays(expected: dict[str, Any], found: dict[str, Any], opening: str) -> None:
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


def _by_name(tree: Any) -> dict[str, Any]:
    """The leaves of any tree by their dotted path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _in_structure(tree: Tree, named: dict[str, Any]) -> Tree:
    """``named`` leaves in the structure of ``tree``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: named[jax.tree_util.keystr(path, simple=True, separator=".")], tree
    )


def _host_copy(tree: Tree) -> Tree:
    # Copied, because the training step donates these buffers while they are being written.
    return jax.tree.map(np.array, tree)


def _manager(folder: Path, keep_last: int) -> ocp.CheckpointManager:
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    _quieten_orbax()

    def quality(metrics: dict[str, float]) -> float:
        return metrics[BEST_BY]

    keep = policies.AnyPreservationPolicy(
        [
            policies.LatestN(keep_last),
            policies.BestN(get_metric_fn=quality, n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    return ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(
            best_fn=quality, preservation_policy=keep, cleanup_tmp_directories=True
        ),
    )


def _best_step_folder(workdir: Path) -> Path:
    import orbax.checkpoint as ocp

    _quieten_orbax()
    folder = workdir.resolve() / CHECKPOINTS
    options = ocp.CheckpointManagerOptions(read_only=True, best_fn=lambda metrics: metrics[BEST_BY])
    with ocp.CheckpointManager(folder, options=options) as manager:
        best, latest = manager.best_step(), manager.latest_step()
    if latest is None:
        raise UserError(f"weights {workdir}: no checkpoint has been saved there yet")
    return folder / str(latest if best is None else best)


def _read_item(folder: Path) -> Any:
    import orbax.checkpoint as ocp

    _quieten_orbax()
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            return checkpointer.restore(folder.resolve())
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"checkpoint {folder}: is damaged and cannot be read ({reason})") from None


def _write_item(folder: Path, tree: Any) -> None:
    import orbax.checkpoint as ocp

    _quieten_orbax()
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(folder.resolve(), args=ocp.args.StandardSave(tree))


def _quieten_orbax() -> None:
    # Orbax warns through absl of what is meant here, as a save without metrics.
    logging.getLogger("absl").addFilter(_is_no_orbax_chatter)


def _is_no_orbax_chatter(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or "orbax" not in record.pathname
