"""What a training run shows and keeps: progress bar, ``metrics.jsonl``, TensorBoard events."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rpn_jax.errors import UserError, writing
from rpn_jax.files import json_figures, written_whole

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Observer of a run, a context manager; figures are means since the line before.

    Args:
      workdir: where ``metrics.jsonl`` and the event files go.
      console: where people look.
      batch_size: pictures a step.
      steps_per_epoch: steps an epoch.
      first_step: steps done before this run; later lines of an interrupted run are dropped.
      last_step: steps at the end of training.
      log_every: steps between two lines.
    """

    def __init__(
        self,
        workdir: Path,
        console: Console,
        batch_size: int,
        steps_per_epoch: int,
        first_step: int,
        last_step: int,
        log_every: int,
    ) -> None:
        self._console = console
        self._batch_size = batch_size
        self._steps_per_epoch = steps_per_epoch
        self._last_step = last_step
        self._log_every = log_every
        # Imported here, as it imports PyTorch where that is installed: seconds, and 0.2 GB.
        from tensorboardX import SummaryWriter

        self._metrics_path = workdir / METRICS_FILE
        _drop_lines_after(self._metrics_path, first_step)
        self._events = SummaryWriter(str(workdir), purge_step=first_step + 1)
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0
        self._seconds = 0.0
        self._clock = time.perf_counter()
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(
            "train",
            total=last_step,
            completed=first_step,
            epoch=first_step // steps_per_epoch + 1,
            figures="",
        )

    def __enter__(self) -> RunLog:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
        self._events.close()

    def compiling(self, canvas: tuple[int, int], number: int, total: int) -> None:
        """Say which canvas (height, width) is compiled."""
        self._console.print(
            f"compiling the training step for canvas {canvas[0]}x{canvas[1]} ({number} of {total})"
        )

    def compiled(self, seconds: float) -> None:
        """Say how long that took."""
        self._console.print(f"  took {seconds:.1f} s")

    def restart_clock(self) -> None:
        """Leave the time since the last step out of the rate."""
        self._clock = time.perf_counter()

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._clock
        self._clock = now

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Count a step, from 0; write a line where one is due."""
        done = step + 1
        for key, value in metrics.items():
            self._sums[key] += value
        self._count += 1
        self._count_seconds()
        epoch = step // self._steps_per_epoch + 1
        self._progress.update(self._task, completed=done, epoch=epoch)
        if done % self._log_every == 0 or done == self._last_step:
            self._flush(done, metrics["learning_rate"])

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """Keep the figures of an evaluation after ``step`` steps."""
        self._write(step, figures, "evaluation")

    def _flush(self, done: int, learning_rate: float) -> None:
        figures = {key: total / self._count for key, total in self._sums.items()}
        figures["learning_rate"] = learning_rate
        figures["pictures_per_second"] = self._count * self._batch_size / self._seconds
        self._sums.clear()
        self._count = 0
        self._seconds = 0.0
        self._write(done, figures, "training")
        text = (
            f"loss {figures['loss']:.4f}  lr {learning_rate:.2e}  "
            f"{figures['pictures_per_second']:.1f} pictures/s"
        )
        self._progress.update(self._task, figures=text)
        if not self._console.is_terminal:
            self._console.print(f"step {done}/{self._last_step}  {text}")

    def _write(self, done: int, figures: dict[str, float], group: str) -> None:
        line = {"step": done, "epoch": done / self._steps_per_epoch, **json_figures(figures)}
        with writing(f"metrics {self._metrics_path}"), open(self._metrics_path, "a") as file:
            file.write(json.dumps(line) + "\n")
        for key, value in figures.items():
            if math.isfinite(value):
                self._events.add_scalar(f"{group}/{key}", value, done)
        self._events.flush()


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    steps = [_step_of(line, number, path) for number, line in enumerate(lines, start=1)]
    with written_whole(path) as temporary:
        temporary.write_bytes(
            b"".join(line for line, of in zip(lines, steps, strict=True) if of <= step)
        )


def _step_of(line: bytes, number: int, path: Path) -> float:
    if not line.endswith(b"\n"):
        return math.inf  # A killed run may leave its last line unfinished.
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"metrics {path}: line {number} is not JSON with a 'step'; remove this line"
        ) from None
