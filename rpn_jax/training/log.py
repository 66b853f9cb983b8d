"""The log of a training run: progress bar, ``metrics.jsonl`` and TensorBoard events."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console

from rpn_jax.console import make_bar
from rpn_jax.devices import peak_memory
from rpn_jax.errors import writing
from rpn_jax.files import json_figures, written_whole
from rpn_jax.training.events import EventFile
from rpn_jax.training.metrics import METRICS_FILE, MetricsRow, metrics_line, read_metrics
from rpn_jax.training.trackers import Tracker, finite


class RunLog:
    """Shows and stores the progress of a run. A context manager, and an `Observer`.

    Each line of metrics holds the means over the steps since the previous line, and:

    - ``input_wait``: share of the time that the loop waited for batches, counting the waits at
      whose end the devices had nothing left to do. It is an upper bound of their idle time.
    - ``device_memory_gb``: largest memory of a device so far, in GB, where the backend reports it.

    `done` is the number of finished steps.

    Args:
      workdir: folder of ``metrics.jsonl`` and the event files.
      console: console for the progress.
      batch_size: pictures in a step.
      steps_per_epoch: steps in an epoch.
      first_step: number of steps finished before. Lines of later steps are removed, because a
        resumed run repeats these steps.
      last_step: number of steps at the end of training.
      log_every: steps between two lines.
      trackers: also receive the figures. They are closed at the end.
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
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._console = console
        self._batch_size = batch_size
        self._steps_per_epoch = steps_per_epoch
        self._last_step = last_step
        self._log_every = log_every
        self._trackers = trackers
        self.done = first_step
        self._metrics_path = workdir / METRICS_FILE
        _keep_lines(self._metrics_path, lambda row: row["step"] <= first_step)
        self._events = EventFile(workdir, first_step)
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0
        self._seconds = 0.0
        self._waited = 0.0
        self._clock = time.perf_counter()
        self._progress = make_bar(console, "epoch {task.fields[epoch]}", "{task.fields[figures]}")
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
        for tracker in self._trackers:
            tracker.close()

    def compiling(self, canvas: tuple[int, int], number: int, total: int) -> None:
        """Print the canvas (height, width) that is compiled now."""
        self._console.print(
            f"compiling the training step for canvas {canvas[0]}x{canvas[1]} ({number} of {total})"
        )

    def compiled(self, seconds: float) -> None:
        """Print the duration of the compilation."""
        self._console.print(f"  took {seconds:.1f} s")

    def restart_clock(self) -> None:
        """Exclude the time since the last step from the rate."""
        self._clock = time.perf_counter()

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._clock
        self._clock = now

    def waited(self, seconds: float) -> None:
        """Add a wait for a batch, during which the devices became idle."""
        self._waited += seconds

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics of a step, counted from 0. Write a line if one is due."""
        self.done = done = step + 1
        for key, value in metrics.items():
            self._sums[key] += value
        self._count += 1
        self._count_seconds()
        epoch = step // self._steps_per_epoch + 1
        self._progress.update(self._task, completed=done, epoch=epoch)
        if done % self._log_every == 0 or done == self._last_step:
            self._flush(done, metrics["learning_rate"])

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """Write the figures of an evaluation after ``step`` steps."""
        self._write(step, figures, "evaluation")

    def _flush(self, done: int, learning_rate: float) -> None:
        figures = {key: total / self._count for key, total in self._sums.items()}
        figures["learning_rate"] = learning_rate
        figures["pictures_per_second"] = self._count * self._batch_size / self._seconds
        figures["input_wait"] = min(self._waited / self._seconds, 1.0)
        memory = peak_memory()
        if memory is not None:
            figures["device_memory_gb"] = memory / 1e9
        self._sums.clear()
        self._count = 0
        self._seconds = self._waited = 0.0
        self._write(done, figures, "training")
        text = (
            f"loss {figures['loss']:.4f}  lr {learning_rate:.2e}  "
            f"{figures['pictures_per_second']:.1f} pictures/s  "
            f"input wait {figures['input_wait']:.0%}"
        )
        if memory is not None:
            text += f"  memory {memory / 1e9:.1f} GB"
        self._progress.update(self._task, figures=text)
        if not self._console.is_terminal:
            self._console.print(f"step {done}/{self._last_step}  {text}")

    def _write(self, done: int, figures: dict[str, float], group: str) -> None:
        epoch = done / self._steps_per_epoch
        row: MetricsRow = {"step": done, "epoch": epoch, **json_figures(figures)}
        with writing(f"metrics {self._metrics_path}"), open(self._metrics_path, "a") as file:
            file.write(metrics_line(row))
        named = {f"{group}/{key}": value for key, value in finite(figures).items()}
        self._events.write(named, done)
        for tracker in self._trackers:
            tracker.log(done, named)


class QuietLog:
    """Stands for the `RunLog` in processes that do not write it. It only counts the steps."""

    def __init__(self, first_step: int) -> None:
        self.done = first_step

    def __enter__(self) -> QuietLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def compiling(self, canvas: tuple[int, int], number: int, total: int) -> None:
        """Do nothing."""

    def compiled(self, seconds: float) -> None:
        """Do nothing."""

    def restart_clock(self) -> None:
        """Do nothing."""

    def waited(self, seconds: float) -> None:
        """Do nothing."""

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Count a step."""
        self.done = step + 1

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """Do nothing."""


def drop_evaluation(workdir: Path, step: int, name: str) -> None:
    """Remove the line of the evaluation after ``step`` steps, which has the figure ``name``."""
    _keep_lines(workdir / METRICS_FILE, lambda row: row["step"] != step or name not in row)


def _keep_lines(path: Path, is_kept: Callable[[MetricsRow], bool]) -> None:
    """Remove the other lines, and an unfinished last line."""
    if not path.exists():
        return
    lines = [metrics_line(row) for row in read_metrics(path) if is_kept(row)]
    with written_whole(path) as temporary:
        temporary.write_text("".join(lines))
