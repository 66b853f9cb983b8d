"""Save and restore the checkpoints of a training run.

A checkpoint is a folder ``WORKDIR/checkpoints/STEP`` with the items ``variables`` (of the model)
and ``optimizer`` (the optimiser's arrays by name). If it was evaluated, it has ``metrics`` too.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from rpn_jax.errors import UserError, reading
from rpn_jax.files import make_folder
from rpn_jax.weights.trees import (
    Tree,
    by_name,
    check_arrays,
    check_variables,
    host_copy,
    in_structure,
    quieten_orbax,
    read_item,
)

CHECKPOINTS, VARIABLES, OPTIMIZER, METRICS = "checkpoints", "variables", "optimizer", "metrics"
EPOCH_STEPS, BEST_BY = "epoch_steps", "best_by"
VERSION_0_1_BEST_BY = "AR@1000"
"""Version 0.1 did not store ``best_by``. All its runs used this figure."""


@dataclass(frozen=True)
class Saved:
    """What is stored in a checkpoint besides the arrays."""

    step: int
    """Number of steps done."""
    epoch_steps: int
    """Number of steps in an epoch of its run."""
    evaluated: bool
    """Whether the checkpoint has metrics."""


class Checkpoints:
    """Writer of a run's checkpoints. It keeps the latest ones, and the best one by one figure.

    Saving copies the arrays and writes them in the background. A checkpoint gets its name when it
    is complete, so a killed run leaves the previous one.

    Example::

      with Checkpoints(workdir, 2, epoch_steps=1000, best_by="AR@1000") as checkpoints:
          ...
          checkpoints.save(step, variables, opt_state, metrics)
    """

    def __init__(self, workdir: Path, keep_last: int, epoch_steps: int, best_by: str) -> None:
        """Open the checkpoints of a work directory. Create the folder if it does not exist.

        Args:
          workdir: folder of the run.
          keep_last: number of latest checkpoints to keep. The best one is kept too.
          epoch_steps: number of steps in an epoch. It is stored in each checkpoint.
          best_by: name of the figure that selects the best checkpoint. Larger is better. It is
            stored in each checkpoint, so `best_step_folder` needs only the folder.

        Raises:
          UserError: the folder cannot be written.
        """
        self.folder = workdir.resolve() / CHECKPOINTS
        make_folder(self.folder)
        self._epoch_steps = epoch_steps
        self._best_by = best_by
        self._manager = _manager(self.folder, keep_last, best_by)

    def save(
        self, step: int, variables: Any, opt_state: Any, metrics: dict[str, float] | None
    ) -> None:
        """Start to save a checkpoint. Only waits until the previous one is written.

        Args:
          step: number of steps done. It must be larger than that of the last checkpoint.
          variables: nested dicts of arrays.
          opt_state: state of the optimiser, any tree of arrays.
          metrics: figures of an evaluation at this step, with ``best_by``. None if there was none.

        Raises:
          UserError: the step is too small, or this or the previous checkpoint cannot be written.
        """
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
                f"checkpoints {self.folder}: step {step} is not above the last saved step, "
                f"{self._manager.latest_step()}. Resume the run, or choose another --workdir."
            )

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics of a later evaluation to a checkpoint that was saved without metrics.

        Raises:
          UserError: the metrics cannot be written.
        """
        with self._writing():
            with ocp.Checkpointer(ocp.JsonCheckpointHandler(METRICS)) as checkpointer:
                folder = self.folder / str(step) / METRICS
                checkpointer.save(folder, args=ocp.args.JsonSave(metrics), force=True)
            self._manager.reload()

    def close(self) -> None:
        """Wait until the last checkpoint is written, and stop the threads that write.

        Raises:
          UserError: the last checkpoint cannot be written.
        """
        with self._writing():
            try:
                self._manager.wait_until_finished()
            finally:
                # `close` stops the threads only after the error of a save was raised.
                self._manager.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"checkpoints {self.folder}: cannot be written ({_cause(error)}). Earlier "
                "checkpoints are complete."
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
    """Describe the last checkpoint of a work directory. Return None if there is none.

    Raises:
      UserError: the checkpoint is damaged, or the work directory cannot be read.
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
    """Read the variables and the optimiser state of a checkpoint, bit for bit.

    Args:
      workdir: folder of the run.
      step: step of the checkpoint.
      variables: the expected tree of arrays or shapes.
      opt_state: the expected tree of arrays or shapes.

    Returns:
      (variables, opt_state) with NumPy leaves.

    Raises:
      UserError: the checkpoint is of another model or optimiser, or is damaged.
    """
    folder = workdir.resolve() / CHECKPOINTS / str(step)
    stored = read_item(folder / VARIABLES)
    check_variables(variables, stored, folder)
    named = read_item(folder / OPTIMIZER)
    check_arrays(by_name(opt_state), named, f"optimizer {folder}: does not match the config")
    return in_structure(variables, by_name(stored)), in_structure(opt_state, named)


def best_step_folder(workdir: Path) -> Path:
    """Return the folder of a run's best checkpoint, or of its last one if none was evaluated.

    The figure that selects the best one is stored in the last checkpoint.

    Raises:
      UserError: the run has no checkpoint.
    """
    folder = workdir.resolve() / CHECKPOINTS
    with _reader(folder) as manager:
        last = manager.latest_step()
        if last is None:
            raise UserError(f"weights {workdir}: holds no checkpoint yet")
        best_by = manager.metadata(last).custom_metadata.get(BEST_BY, VERSION_0_1_BEST_BY)
        figures = {step: manager.metrics(step) for step in manager.all_steps()}
    evaluated = [(values[best_by], step) for step, values in figures.items() if values is not None]
    return folder / str(max(evaluated)[1] if evaluated else last)


def _cause(error: Exception) -> str:
    """Return the reason for an error, in the words of the operating system if it has them."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(number[1])) if number else " ".join(str(error).split())[:100]


@contextmanager
def _reader(folder: Path) -> Iterator[ocp.CheckpointManager]:
    quieten_orbax()
    options = ocp.CheckpointManagerOptions(read_only=True)
    try:
        with ocp.CheckpointManager(folder, options=options) as manager:
            yield manager
    except json.JSONDecodeError as error:
        raise UserError(
            f"checkpoints {folder}: contains damaged metrics ({error}). Remove that checkpoint."
        ) from None


def _manager(folder: Path, keep_last: int, best_by: str) -> ocp.CheckpointManager:
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
            # Otherwise the threads wait for ever for a folder that cannot be created.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        ),
    )
