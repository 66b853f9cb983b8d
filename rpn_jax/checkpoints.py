"""Checkpoints of a training run.

A run keeps ``WORKDIR/checkpoints/STEP/``, each with two items: ``variables`` (the model's) and
``optimizer`` (the optimiser's arrays by name), and ``metrics`` where it was evaluated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rpn_jax.errors import UserError
from rpn_jax.output import make_folder
from rpn_jax.trees import (
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

    from rpn_jax.trees import Tree

BEST_BY = "AR@1000"
"""The metric by which a run's best checkpoint is told."""

CHECKPOINTS, VARIABLES, OPTIMIZER = "checkpoints", "variables", "optimizer"


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
                variables=ocp.args.StandardSave(host_copy(variables)),
                optimizer=ocp.args.StandardSave(by_name(host_copy(opt_state))),
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
        stored = read_item(folder / VARIABLES)
        check_variables(variables, stored, folder)
        named = read_item(folder / OPTIMIZER)
        check_arrays(by_name(opt_state), named, f"optimizer {folder}: is of another config")
        return step, in_structure(variables, by_name(stored)), in_structure(opt_state, named)

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


def best_step_folder(workdir: Path) -> Path:
    """The folder of a run's best checkpoint by `BEST_BY`, or of its last if none was evaluated.

    Raises:
      UserError: no checkpoint was saved.
    """
    import orbax.checkpoint as ocp

    quieten_orbax()
    folder = workdir.resolve() / CHECKPOINTS
    options = ocp.CheckpointManagerOptions(read_only=True, best_fn=lambda metrics: metrics[BEST_BY])
    with ocp.CheckpointManager(folder, options=options) as manager:
        best, latest = manager.best_step(), manager.latest_step()
    if latest is None:
        raise UserError(f"weights {workdir}: no checkpoint has been saved there yet")
    return folder / str(latest if best is None else best)


def _manager(folder: Path, keep_last: int) -> ocp.CheckpointManager:
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    quieten_orbax()

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
