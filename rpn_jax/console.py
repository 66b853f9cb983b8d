"""The console, and the progress of long work: a bar on a terminal, some lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES = 10.0


def make_console() -> Console:
    """Return a console that prints paths unchanged: without markup, emoji and highlighting."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)


@contextmanager
def picture_progress(
    console: Console, activity: str, total: int
) -> Iterator[Callable[[int], None]]:
    """Show the progress of work on ``total`` pictures.

    Args:
      console: console to print to.
      activity: name of the work, for example 'proposing'.
      total: number of pictures.

    Yields:
      A function to call with the number of pictures finished since the last call.
    """
    if console.is_interactive:  # Only such a terminal can redraw the bar.
        with _bar(console, activity, total) as advance:
            yield advance
    else:
        yield _Lines(console, activity, total).advance


@contextmanager
def _bar(console: Console, activity: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(activity),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("pictures"),
        TimeElapsedColumn(),
        TextColumn("<"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda pictures: progress.advance(task, pictures)


class _Lines:
    """Prints a line for a log, at most every `SECONDS_BETWEEN_LINES`."""

    def __init__(self, console: Console, activity: str, total: int) -> None:
        self._console = console
        self._activity = activity
        self._total = total
        self._done = 0
        self._start = self._last_line = time.perf_counter()

    def advance(self, pictures: int) -> None:
        self._done += pictures
        now = time.perf_counter()
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        rate = self._done / (now - self._start)
        left = timedelta(seconds=round((self._total - self._done) / rate))
        self._console.print(
            f"{self._activity} {self._done}/{self._total} pictures, {rate:.1f}/s, {left} left",
            soft_wrap=True,
        )
