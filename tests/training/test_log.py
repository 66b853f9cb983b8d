"""The log of a run: means, the rate, and the lines that a resumed run removes."""

import io
import json

import pytest
from rich.console import Console

from rpn_jax.errors import UserError
from rpn_jax.training import log as run_log
from rpn_jax.training.log import RunLog
from rpn_jax.training.metrics import METRICS_FILE


class Clock:
    """A clock whose time the tests set."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(run_log.time, "perf_counter", clock.perf_counter)
    return clock


def make_log(folder, first_step=0, log_every=4):
    return RunLog(
        folder,
        Console(file=io.StringIO()),
        batch_size=2,
        steps_per_epoch=3,
        first_step=first_step,
        last_step=8,
        log_every=log_every,
    )


def lines_of(folder):
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def metrics(loss):
    return {"loss": loss, "learning_rate": 0.1}


def test_a_line_holds_means_and_the_rate_excludes_pauses(tmp_path, clock):
    with make_log(tmp_path) as log:
        for step, loss in enumerate([4.0, 3.0, 2.0]):
            clock.now += 1.0
            log.step(step, metrics(loss))
        clock.now += 100.0  # an evaluation
        log.evaluated(3, {"AR@100": 0.5, "AR_small@1000": float("nan")})
        log.restart_clock()
        clock.now += 1.0
        log.step(3, metrics(1.0))
    evaluation, line = lines_of(tmp_path)
    assert evaluation == {"step": 3, "epoch": 1.0, "AR@100": 0.5, "AR_small@1000": None}
    assert line["step"] == 4
    assert line["loss"] == pytest.approx(2.5)
    assert line["pictures_per_second"] == pytest.approx(4 * 2 / 4.0)


def test_a_line_has_the_share_of_time_spent_waiting_for_input(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(run_log, "peak_memory", lambda: 2_500_000_000)
    with make_log(tmp_path, log_every=2) as log:
        for step in range(4):
            clock.now += 1.0
            if step < 2:
                log.waited(0.25)
            log.step(step, metrics(1.0))
    first, second = lines_of(tmp_path)
    assert (first["input_wait"], second["input_wait"]) == (pytest.approx(0.25), 0.0)
    assert first["device_memory_gb"] == pytest.approx(2.5)


def test_memory_is_left_out_where_the_device_does_not_report_it(tmp_path, clock):
    with make_log(tmp_path, log_every=1) as log:
        clock.now += 1.0
        log.step(0, metrics(1.0))
    assert "device_memory_gb" not in lines_of(tmp_path)[0]


def test_a_resumed_run_removes_later_lines_and_an_unfinished_one(tmp_path):
    path = tmp_path / METRICS_FILE
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"ste')
    with make_log(tmp_path, first_step=4):
        assert lines_of(tmp_path) == [{"step": 2}, {"step": 4}]


def test_a_damaged_line_is_named_and_nothing_is_removed(tmp_path):
    path = tmp_path / METRICS_FILE
    path.write_text('{"step": 2}\ngibberish\n{"step": 6}\n')
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"metrics.jsonl: line 2: is not a JSON object"):
        make_log(tmp_path, first_step=4)
    assert path.read_bytes() == before


def test_unwritable_metrics_are_reported(tmp_path):
    (tmp_path / METRICS_FILE).touch()
    with make_log(tmp_path) as log:
        (tmp_path / METRICS_FILE).unlink()
        (tmp_path / METRICS_FILE).mkdir()
        with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written \(Is a directory\)"):
            log.evaluated(3, {"AR@100": 0.5})


def test_the_last_step_is_always_written(tmp_path):
    with make_log(tmp_path, first_step=6, log_every=100) as log:
        log.step(6, metrics(1.0))
        log.step(7, metrics(2.0))
    assert [line["step"] for line in lines_of(tmp_path)] == [8]
