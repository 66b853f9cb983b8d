"""The console, and progress of long work: a bar on a terminal, a line now and then in a log."""

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
    """A console that prints paths as they are: no markup, no emoji, no colours of its own."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)


@contextmanager
def picture_progress(console: Console, doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many of ``total`` pictures are done.

    Args:
      console: to print to.
      doing: what is done with the pictures, for example 'proposing'.
      total: pictures in all.

    Yields:
      What is to be told how many more pictures are done.
    """
    if console.is_interactive:  # a terminal that can redraw a line
        with _bar(console, doing, total) as advance:
            yield advance
    else:
        yield _Lines(console, doing, total).advance


@contextmanager
def _bar(console: Console, doing: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(doing),
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
    """A line for a log, at most every `SECONDS_BETWEEN_LINES`."""

    def __init__(self, console: Console, doing: str, total: int) -> None:
        self._console = console
        self._doing = doing
        self._total = total
        self._done = 0
        self._began = self._told = time.perf_counter()

    def advance(self, pictures: int) -> None:
        self._done += pictures
        now = time.perf_counter()
        if now - self._told < SECONDS_BETWEEN_LINES:
            return
        self._told = now
        rate = self._done / (now - self._began)
        left = timedelta(seconds=round((self._total - self._done) / rate))
        self._console.print(
            f"{self._doing} {self._done}/{self._total} pictures, {rate:.1f}/s, {left} left",
            soft_wrap=True,
        )
