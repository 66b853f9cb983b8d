"""When a checkpoint is due within an epoch, and what happens to damaged ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rpn_jax.hosts.exchange import Vote
from rpn_jax.weights.checkpoints import Restored, set_aside


class SaveTimer:
    """Decides after each step whether a checkpoint is due.

    Args:
      every_steps: number of steps between two checkpoints. 0 counts no steps.
      every_minutes: minutes between two checkpoints. 0 measures no time.
    """

    def __init__(self, every_steps: int, every_minutes: float) -> None:
        self._every_steps = every_steps
        self._every_seconds = 60 * every_minutes
        self._last = time.monotonic()
        self._vote = Vote()

    def due(self, done: int) -> bool:
        """Return whether a checkpoint is due after ``done`` steps, in all processes the same."""
        by_steps = self._every_steps > 0 and done % self._every_steps == 0
        if self._every_seconds == 0:
            return by_steps
        by_time = self._vote(time.monotonic() - self._last >= self._every_seconds)
        return by_steps or by_time

    def restart(self) -> None:
        """Measure the time from now on. Called after each checkpoint."""
        self._last = time.monotonic()
        self._vote.forget()


def set_aside_damaged(workdir: Path, restored: Restored, say: Callable[[str], None]) -> None:
    """Move the damaged checkpoints that `restore_newest` skipped out of the way of new ones."""
    for step, message in restored.damaged.items():
        moved = set_aside(workdir, step)
        say(
            f"warning: {message}. It was moved to {moved}. Training continues from the checkpoint "
            f"of step {restored.saved.step}."
        )


def describe_duration(seconds: float) -> str:
    """Return a duration in words, for example '12 s', '3.5 min' or '2.0 h'."""
    if seconds < 60:
        return f"{max(seconds, 0):.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
