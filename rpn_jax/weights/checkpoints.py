"""Save and restore the checkpoints of a training run.

A checkpoint is a folder ``WORKDIR/checkpoints/STEP`` with the items ``variables`` (of the model)
and ``optimizer`` (the optimiser's arrays by name). If it was evaluated, it has ``metrics`` too.
Its record, in Orbax's file ``_CHECKPOINT_METADATA``, holds a checksum of each array, so that a
damaged checkpoint is detected.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from rpn_jax.errors import UserError, reading, writing
from rpn_jax.files import make_folder, read_json
from rpn_jax.weights.trees import (
    DamagedError,
    by_itself,
    by_name,
    check_arrays,
    check_variables,
    checksums,
    host_copy,
    in_structure,
    os_error_number,
    quieten_orbax,
    read_item,
)

CHECKPOINTS, VARIABLES, OPTIMIZER, METRICS = "checkpoints", "variables", "optimizer", "metrics"
DAMAGED = "damaged"
"""Folder of a work directory that receives damaged checkpoints."""
RECORD_FILE, RECORD = "_CHECKPOINT_METADATA", "custom_metadata"
"""Orbax's file in a checkpoint, and its key for the values of `Checkpoints`."""
EPOCH_STEPS, BEST_BY, SAVED_AT = "epoch_steps", "best_by", "saved_at"
CHECKSUMS, CHECKSUM = "checksums", "checksum"
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
    saved_at: float = field(default=0.0, compare=False)
    """When it was saved, in seconds since 1970."""


@dataclass(frozen=True)
class Restored:
    """The newest checkpoint that is not damaged."""

    saved: Saved
    variables: Any
    """Variables with NumPy leaves."""
    opt_state: Any
    """State of the optimiser with NumPy leaves."""
    damaged: dict[int, str]
    """Newer checkpoints that are damaged: the error message of each, by its step."""


class Checkpoints:
    """Writer of a run's checkpoints. It keeps the latest ones, and the best one by one figure.

    Saving copies the arrays and writes them in the background. A checkpoint gets its name when it
    is complete, so a killed run leaves the previous one.

    Example::

      with Checkpoints(workdir, 2, epoch_steps=1000, best_by="AR@1000") as checkpoints:
          ...
          checkpoints.save(step, variables, opt_state)
          checkpoints.add_metrics(step, {"AR@1000": 0.5})
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
          UserError: the folder cannot be written, or the metrics of a checkpoint are damaged.
        """
        self.folder = workdir.resolve() / CHECKPOINTS
        make_folder(self.folder)
        for step in _steps(self.folder):
            _metrics(self.folder / str(step))
        self._epoch_steps = epoch_steps
        self._best_by = best_by
        self._manager = _manager(self.folder, keep_last, best_by)

    def save(self, step: int, variables: Any, opt_state: Any) -> None:
        """Start to save a checkpoint. Only waits until the previous one is written.

        Args:
          step: number of steps done. It must be larger than that of the last checkpoint.
          variables: nested dicts of arrays.
          opt_state: state of the optimiser, any tree of arrays.

        Raises:
          UserError: the step is too small, or this or the previous checkpoint cannot be written.
        """
        items = {VARIABLES: host_copy(variables), OPTIMIZER: by_name(host_copy(opt_state))}
        record = {
            EPOCH_STEPS: self._epoch_steps,
            BEST_BY: self._best_by,
            SAVED_AT: time.time(),
            CHECKSUMS: {name: checksums(item) for name, item in items.items()},
        }
        with self._writing():
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(item) for name, item in items.items()}
                ),
                custom_metadata=_sealed(record),
            )
        if not saved:
            raise UserError(
                f"checkpoints {self.folder}: step {step} is not above the last saved step, "
                f"{self._manager.latest_step()}. Resume the run, or choose another --workdir."
            )

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Add the figures of an evaluation to a checkpoint. Waits until it is written.

        Args:
          step: step of a checkpoint without metrics.
          metrics: figures by name. ``best_by`` must be one of them.

        Raises:
          UserError: the checkpoint or the metrics cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()
            with ocp.Checkpointer(
                ocp.JsonCheckpointHandler(METRICS, multiprocessing_options=by_itself()),
                multiprocessing_options=by_itself(),
            ) as checkpointer:
                folder = self.folder / str(step) / METRICS
                checkpointer.save(folder, args=ocp.args.JsonSave(_sealed(metrics)), force=True)
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
    """Describe the last checkpoint of a work directory whose record is not damaged.

    The arrays are not read. Returns None if there is no checkpoint.

    Raises:
      DamagedError: the records of all checkpoints are damaged.
      UserError: the work directory cannot be read.
    """
    with reading(f"work directory {workdir}"):
        folder = workdir.resolve() / CHECKPOINTS
        damage = None
        for step in _steps(folder):
            try:
                return _describe(folder / str(step))
            except DamagedError as error:
                damage = damage or error
    if damage is not None:
        raise damage
    return None


def restore_newest(workdir: Path, variables: Any, opt_state: Any) -> Restored:
    """Read the newest checkpoint that is not damaged, bit for bit.

    Args:
      workdir: folder of a run with a checkpoint.
      variables: the expected tree of arrays or shapes.
      opt_state: the expected tree of arrays or shapes.

    Raises:
      DamagedError: all checkpoints are damaged. The message is about the newest.
      UserError: the checkpoint is of another model or optimiser.
    """
    folder = workdir.resolve() / CHECKPOINTS
    damaged: dict[int, str] = {}
    for step in _steps(folder):
        try:
            saved = _describe(folder / str(step))
            stored = read_verified(folder / str(step) / VARIABLES)
            named = read_verified(folder / str(step) / OPTIMIZER)
        except DamagedError as error:
            damaged[step] = str(error)
            continue
        check_variables(variables, stored, folder / str(step))
        opening = f"optimizer {folder / str(step)}: does not match the config"
        check_arrays(by_name(opt_state), named, opening)
        return Restored(
            saved,
            in_structure(variables, by_name(stored)),
            in_structure(opt_state, named),
            damaged,
        )
    newest = next(iter(damaged.values()), f"checkpoints {folder}: is empty")
    raise DamagedError(f"{newest}. No other checkpoint is left. Start again in another --workdir.")


def set_aside(workdir: Path, step: int) -> Path:
    """Move a damaged checkpoint to ``WORKDIR/damaged``, so that its step can be saved again.

    Returns:
      The new path of the checkpoint.

    Raises:
      UserError: the work directory cannot be written.
    """
    folder = workdir.resolve() / DAMAGED
    make_folder(folder)
    with writing(folder):
        moved = folder / f"{step}_{len(list(folder.iterdir()))}"
        return (workdir.resolve() / CHECKPOINTS / str(step)).rename(moved)


def read_verified(folder: Path) -> Any:
    """Read an item of a checkpoint, or a folder of weights, and compare its checksums.

    Checkpoints of version 0.1 and folders of weights have no checksums. They are not compared.

    Raises:
      DamagedError: the item cannot be read, or an array is not as it was saved.
    """
    expected = None
    if (folder.parent / RECORD_FILE).exists():
        expected = _record(folder.parent).get(CHECKSUMS, {}).get(folder.name)
    tree = read_item(folder)
    if expected is None:
        return tree
    found = checksums(tree)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise DamagedError(
                f"checkpoint {folder}: is damaged: '{name}' is not as it was saved (its checksum "
                "differs)"
            )
    return tree


def best_step_folder(workdir: Path) -> Path:
    """Return the folder of a run's best checkpoint, or of its last one if none was evaluated.

    The figure that selects the best one is stored in the last checkpoint.

    Raises:
      UserError: the run has no checkpoint, or one is damaged.
    """
    folder = workdir.resolve() / CHECKPOINTS
    steps = _steps(folder)
    if not steps:
        raise UserError(f"weights {workdir}: holds no checkpoint yet")
    best_by = _record(folder / str(steps[0])).get(BEST_BY, VERSION_0_1_BEST_BY)
    figures = {step: _metrics(folder / str(step)) for step in steps}
    evaluated = [(values[best_by], step) for step, values in figures.items() if values is not None]
    return folder / str(max(evaluated)[1] if evaluated else steps[0])


def _steps(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints, latest first."""
    if not folder.is_dir():
        return []
    # A checkpoint that is being written has another name.
    return sorted(
        (int(path.name) for path in folder.iterdir() if path.name.isdecimal()), reverse=True
    )


def _describe(folder: Path) -> Saved:
    record = _record(folder)
    if EPOCH_STEPS not in record:
        raise DamagedError(f"checkpoint {folder}: is damaged, it has no '{EPOCH_STEPS}'")
    # Version 0.1 did not store the time.
    saved_at = record.get(SAVED_AT, (folder / RECORD_FILE).stat().st_mtime)
    return Saved(int(folder.name), record[EPOCH_STEPS], _metrics(folder) is not None, saved_at)


def _record(folder: Path) -> dict[str, Any]:
    """Return the record that `Checkpoints.save` stored."""
    where = f"checkpoint {folder}: is damaged"
    values = _read_damageable(folder / RECORD_FILE, where)
    return _unsealed(values.get(RECORD) or {}, f"{where}, its record was changed")


def _metrics(folder: Path) -> dict[str, float] | None:
    """Return the figures that `Checkpoints.add_metrics` stored, or None if there are none."""
    if not (folder / METRICS).exists():
        return None
    where = f"checkpoint {folder}: contains damaged metrics. Remove that checkpoint"
    return _unsealed(_read_damageable(folder / METRICS / METRICS, where), where)


def _read_damageable(path: Path, where: str) -> dict[str, Any]:
    try:
        content = read_json(path)
    except UserError as error:
        raise DamagedError(f"{where} ({error})") from None
    if not isinstance(content, dict):
        raise DamagedError(f"{where} ({path}: is not a JSON object)")
    return content


def _sealed(values: dict[str, Any]) -> dict[str, Any]:
    """Return values with their own checksum."""
    return {**values, CHECKSUM: _json_checksum(values)}


def _unsealed(sealed: dict[str, Any], problem: str) -> dict[str, Any]:
    """Return the values that `_sealed` got. Raise a DamagedError if their checksum differs.

    Version 0.1 stored no checksum.
    """
    values = {key: value for key, value in sealed.items() if key != CHECKSUM}
    if CHECKSUM in sealed and sealed[CHECKSUM] != _json_checksum(values):
        raise DamagedError(problem)
    return values


def _json_checksum(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _cause(error: Exception) -> str:
    """Return the reason for an error, in the words of the operating system if it has them."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    number = os_error_number(error)
    return os.strerror(number) if number is not None else " ".join(str(error).split())[:100]


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
            create=False,  # The folder exists. Orbax refuses to create one for a single process.
            multiprocessing_options=by_itself(),
            # Otherwise the threads wait for ever for a folder that cannot be created.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        ),
    )
