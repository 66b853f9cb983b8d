"""The console, and the progress of long work: a bar on a terminal, some lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

SECONDS_BETWEEN_LINES = 10.0


def make_console(quiet: bool = False) -> Console:
    """Return a console that prints paths unchanged: without markup, emoji and highlighting.

    A quiet one prints nothing.
    """
    from rich.console import Console

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            """Leave the error to `rpn_jax.errors.exit_code`. Rich ends the program with code 1."""
            raise BrokenPipeError

    return PlainConsole(markup=False, emoji=False, highlight=False, quiet=quiet)


def say(console: Console, text: str) -> None:
    """Print a line without wrapping, so that paths can be copied and lines can be searched."""
    console.print(text, soft_wrap=True)


@contextmanager
def picture_progress(
    console: Console, activity: str, total: int, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show the progress of work on ``total`` pictures.

    Args:
      console: console to print to.
      activity: name of the work, for example 'proposing'.
      total: number of pictures.
      done: number of pictures that were finished before.

    Yields:
      A function to call with the number of pictures finished since the last call.
    """
    if console.is_interactive:  # Only such a terminal can redraw the bar.
        with make_bar(console, activity, "pictures", transient=True) as progress:
            task = progress.add_task("", total=total, completed=done)
            yield lambda pictures: progress.advance(task, pictures)
    else:
        yield _Lines(console, activity, total, done).advance


def make_bar(console: Console, before: str, after: str, transient: bool = False) -> Progress:
    """Return a progress bar that is shown only on a terminal.

    Args:
      console: console to print to.
      before: text left of the bar. It can contain fields of the task, as in rich's `TextColumn`.
      after: text right of the bar.
      transient: remove the bar at the end.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn(before),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(after),
        TimeElapsedColumn(),
        TextColumn("<"),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        disable=not console.is_terminal,
    )


class _Lines:
    """Prints a line for a log, at most every `SECONDS_BETWEEN_LINES`.

    The rate leaves out the first batch, because its time includes the compilation.
    """

    def __init__(self, console: Console, activity: str, total: int, done: int) -> None:
        self._console = console
        self._activity = activity
        self._total = total
        self._done = done
        self._done_first: int | None = None
        self._first_end = 0.0
        self._last_line = time.perf_counter()

    def advance(self, pictures: int) -> None:
        self._done += pictures
        now = time.perf_counter()
        is_due = now - self._last_line >= SECONDS_BETWEEN_LINES
        text = f"{self._activity} {self._done}/{self._total} pictures"
        if self._done_first is None:
            self._done_first, self._first_end, self._last_line = self._done, now, now
        elif is_due:
            self._last_line = now
            rate = (self._done - self._done_first) / (now - self._first_end)
            left = timedelta(seconds=round((self._total - self._done) / rate))
            text += f", {rate:.1f}/s, {left} left"
        if is_due:
            say(self._console, text)
