"""Ctrl-C and SIGTERM: the first one stops a run after the current step, the second one at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

from rpn_jax.console import say

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(console: Console) -> Iterator[Callable[[], bool]]:
    """Handle Ctrl-C and SIGTERM inside the block.

    The first signal only sets a flag and prints a line. Then the previous handlers are active
    again, so that a second signal interrupts the program.

    Yields:
      A function that returns whether a signal has arrived.
    """
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    received = False

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        restore()
        say(console, "Stopping after this step or evaluation. Press Ctrl-C again to stop at once.")

    for number in SIGNALS:
        signal.signal(number, receive)
    try:
        yield lambda: received
    finally:
        restore()
