"""The first signal asks the run to stop, the second one interrupts it."""

from __future__ import annotations

import io
import signal

import pytest
from rich.console import Console

from rpn_jax.training.signals import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_the_run_to_stop(number: signal.Signals) -> None:
    handler, output = signal.getsignal(number), io.StringIO()
    with stop_on_signals(Console(file=output)) as should_stop:
        assert not should_stop()
        signal.raise_signal(number)
        assert should_stop()
        assert signal.getsignal(number) == handler, "a second signal has its usual effect"
    assert output.getvalue().startswith("Stopping after this step")


def test_the_second_ctrl_c_interrupts() -> None:
    # A shell starts background programs with Ctrl-C ignored. Use Python's own handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _interrupt_twice()
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt_twice() -> None:
    with stop_on_signals(Console(file=io.StringIO())):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_handlers_are_restored_after_the_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals(Console(file=io.StringIO())):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
