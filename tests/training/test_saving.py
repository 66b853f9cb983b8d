"""When a checkpoint is due, and durations in words."""

import pytest

from rpn_jax.training import saving
from rpn_jax.training.saving import SaveTimer, describe_duration


class Clock:
    """A clock whose time the tests set."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(saving, "time", clock)
    return clock


def test_a_save_is_due_every_few_steps():
    timer = SaveTimer(every_steps=3, every_minutes=0)
    assert [step for step in range(1, 10) if timer.due(step)] == [3, 6, 9]


def test_a_save_is_due_after_some_minutes(clock):
    timer = SaveTimer(every_steps=0, every_minutes=1.5)
    clock.now += 89
    assert not timer.due(7)
    clock.now += 1
    assert timer.due(8)
    timer.restart()
    assert not timer.due(9)
    clock.now += 90
    assert timer.due(10)


def test_steps_and_minutes_work_together(clock):
    timer = SaveTimer(every_steps=10, every_minutes=1)
    assert timer.due(10)
    assert not timer.due(11)
    clock.now += 60
    assert timer.due(11)


def test_nothing_is_due_if_both_are_off(clock):
    timer = SaveTimer(every_steps=0, every_minutes=0)
    clock.now += 1e6
    assert not any(timer.due(step) for step in range(1, 1000))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1, "0 s"), (12.4, "12 s"), (60, "1.0 min"), (200, "3.3 min"), (5400, "1.5 h")],
)
def test_durations_are_described_in_words(seconds, words):
    assert describe_duration(seconds) == words
