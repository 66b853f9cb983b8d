"""Checkpoints of a training run.

A run keeps ``WORKDIR/checkpoints/STEP/``, each with two items: ``variables`` (the model's) and
``optimizer`` (the optimiser's arrays by name), and ``metrics`` where it was evaluated.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rpn_jax.errors import UserError, reading
from rpn_jax.files import make_folder
from rpn_jax.weights.trees import (
    by_name,
    check_arrays,
    check_variables,
    host_copy,
    in_structure,
    quieten_orbax,
    read_item,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import orbax.checkpoint as ocp

    from rpn_jax.weights.trees import Tree

CHECKPOINTS, VARIABLES, OPTIMIZER, METRICS = "checkpoints", "variables", "optimizer", "metrics"
EPOCH_STEPS, BEST_BY = "epoch_steps", "best_by"
VERSION_0_1_BEST_BY = "AR@1000"
"""Version 0.1 did not store ``best_by``. All its runs used this figure."""


@dataclass(frozen=True)
class Saved:
    """What is known of a checkpoint without its arrays."""

    step: int
    """Steps done."""
    epoch_steps: int
    """Steps of an epoch of its run."""
    evaluated: bool
    """Whether it has metrics."""


class Checkpoints:
    """The checkpoints of one work directory: the last few, and the best by one figure.

    Saving copies the arrays and writes them in the background. A checkpoint gets its name only
    when it is whole, so a killed run leaves the one before it.

    Example::

      with Checkpoints(workdir, 2, epoch_steps=1000, best_by="AR@1000") as checkpoints:
          ...
          checkpoints.save(step, variables, opt_state, metrics)
    """

    def __init__(self, workdir: Path, keep_last: int, epoch_steps: int, best_by: str) -> None:
        """Open, or make, the checkpoints of a work directory.

        Args:
          workdir: folder of the run; made if missing.
          keep_last: checkpoints kept, beside the best one.
          epoch_steps: steps of an epoch, stored in each checkpoint.
          best_by: name of the figure that selects the best checkpoint, the larger the better. It
            is stored in each checkpoint, so that `best_step_folder` needs only the folder.

        Raises:
          UserError: a work directory that cannot be written, or the checkpoints in it.
        """
        self.folder = workdir.resolve() / CHECKPOINTS
        make_folder(self.folder)
        self._epoch_steps = epoch_steps
        self._best_by = best_by
        self._manager = _manager(self.folder, keep_last, best_by)

    def save(
        self, step: int, variables: Any, opt_state: Any, metrics: dict[str, float] | None
    ) -> None:
        """Start to save a step; waits only for the save before it.

        Args:
          step: steps done; above the last one saved.
          variables: nested dicts of arrays.
          opt_state: the optimiser's state, any tree of arrays.
          metrics: figures of an evaluation at this step, ``best_by`` among them; None without one.

        Raises:
          UserError: a step that is not above the last one saved; this one, or the one before it,
            cannot be written.
        """
        import orbax.checkpoint as ocp

        with self._writing():
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(host_copy(variables)),
                    optimizer=ocp.args.StandardSave(by_name(host_copy(opt_state))),
                ),
                metrics=metrics,
                custom_metadata={EPOCH_STEPS: self._epoch_steps, BEST_BY: self._best_by},
            )
        if not saved:
            raise UserError(
                f"checkpoints {self.folder}: step {step} is not above the last one there, "
                f"{self._manager.latest_step()}; resume from it or choose another work directory"
            )

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Give a checkpoint that was saved without metrics those of a later evaluation.

        Raises:
          UserError: they cannot be written.
        """
        import orbax.checkpoint as ocp

        with self._writing():
            with ocp.Checkpointer(ocp.JsonCheckpointHandler(METRICS)) as checkpointer:
                folder = self.folder / str(step) / METRICS
                checkpointer.save(folder, args=ocp.args.JsonSave(metrics), force=True)
            self._manager.reload()

    def close(self) -> None:
        """Wait, and free what belongs to the background writing.

        Raises:
          UserError: the last checkpoint cannot be written.
        """
        with self._writing():
            try:
                self._manager.wait_until_finished()
            finally:
                # Frees its threads only once the failure of a save has been raised.
                self._manager.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"checkpoints {self.folder}: cannot be written ({_cause(error)}); what was saved "
                "before is whole"
            ) from None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def last_saved(workdir: Path) -> Saved | None:
    """The last checkpoint of a work directory, None if nothing was saved.

    Raises:
      UserError: it is damaged, or the work directory cannot be read.
    """
    with reading(f"work directory {workdir}"):
        return _last_saved(workdir.resolve() / CHECKPOINTS)


def _last_saved(folder: Path) -> Saved | None:
    if not folder.is_dir():
        return None
    with _reader(folder) as manager:
        step = manager.latest_step()
        if step is None:
            return None
        epoch_steps = manager.metadata(step).custom_metadata.get(EPOCH_STEPS)
        evaluated = manager.metrics(step) is not None
    if epoch_steps is None:
        raise UserError(f"checkpoint {folder / str(step)}: is damaged, it has no '{EPOCH_STEPS}'")
    return Saved(step, epoch_steps, evaluated)


def restore_state(workdir: Path, step: int, variables: Tree, opt_state: Any) -> tuple[Tree, Any]:
    """Variables and optimiser state of a step that was saved, bit for bit.

    Args:
      workdir: folder of the run.
      step: one that was saved.
      variables: the expected tree, arrays or their shapes.
      opt_state: likewise.

    Returns:
      (variables, opt_state) with NumPy leaves.

    Raises:
      UserError: a checkpoint of another model or optimiser, or a damaged one.
    """
    folder = workdir.resolve() / CHECKPOINTS / str(step)
    stored = read_item(folder / VARIABLES)
    check_variables(variables, stored, folder)
    named = read_item(folder / OPTIMIZER)
    check_arrays(by_name(opt_state), named, f"optimizer {folder}: is of another config")
    return in_structure(variables, by_name(stored)), in_structure(opt_state, named)


def best_step_folder(workdir: Path) -> Path:
    """Return the folder of a run's best checkpoint, or of its last one if none was evaluated.

    The last checkpoint says which figure selects the best one.

    Raises:
      UserError: no checkpoint was saved.
    """
    folder = workdir.resolve() / CHECKPOINTS
    with _reader(folder) as manager:
        last = manager.latest_step()
        if last is None:
            raise UserError(f"weights {workdir}: no checkpoint has been saved there yet")
        best_by = manager.metadata(last).custom_metadata.get(BEST_BY, VERSION_0_1_BEST_BY)
        figures = {step: manager.metrics(step) for step in manager.all_steps()}
    evaluated = [(values[best_by], step) for step, values in figures.items() if values is not None]
    return folder / str(max(evaluated)[1] if evaluated else last)


def _cause(error: Exception) -> str:
    """The system's own words, where the error has them."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(number[1])) if number else " ".join(str(error).split())[:100]


@contextmanager
def _reader(folder: Path) -> Iterator[ocp.CheckpointManager]:
    import orbax.checkpoint as ocp

    quieten_orbax()
    options = ocp.CheckpointManagerOptions(read_only=True)
    try:
        with ocp.CheckpointManager(folder, options=options) as manager:
            yield manager
    except json.JSONDecodeError as error:
        raise UserError(
            f"checkpoints {folder}: the metrics of one are damaged ({error}); remove its folder"
        ) from None


def _manager(folder: Path, keep_last: int, best_by: str) -> ocp.CheckpointManager:
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    def quality(metrics: dict[str, float]) -> float:
        return metrics[best_by]

    quieten_orbax()
    keep = policies.AnyPreservationPolicy(
        [
            policies.LatestN(keep_last),
            policies.BestN(get_metric_fn=quality, n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    return ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(
            best_fn=quality,
            preservation_policy=keep,
            cleanup_tmp_directories=True,
            # Where a folder cannot be made, threads would wait for it for ever.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        ),
    )
