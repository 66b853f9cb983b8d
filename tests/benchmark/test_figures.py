"""Arithmetic of figures: percentiles, rooflines, ratios, growth, tables."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rpn_jax.benchmark import device, timing
from rpn_jax.benchmark.device import Peaks, peaks_of
from rpn_jax.benchmark.figures import (
    Section,
    program_columns,
    roofline_columns,
    rows_or_failure,
    timing_columns,
)
from rpn_jax.benchmark.growth import canvases_up_to, doubling_up_to, growth_rows
from rpn_jax.benchmark.report import table, write_results
from rpn_jax.benchmark.timing import Effort, Program, Timing, compile_program, repeat, summarize
from rpn_jax.errors import UserError
from rpn_jax.runtime import environment


def program(flops: float | None, bytes_accessed: float | None) -> Program:
    compiled = jax.jit(jnp.negative).lower(1.0).compile()
    return Program(compiled, 2.0, flops, bytes_accessed, 3_000_000)


def test_percentiles_are_interpolated() -> None:
    assert summarize([float(second) for second in range(11)]) == Timing(5.0, 1.0, 9.0, 11)
    assert summarize([4.0, 2.0]) == Timing(3.0, pytest.approx(2.2), pytest.approx(3.8), 2)
    assert summarize([7.0]) == Timing(7.0, 7.0, 7.0, 1)


def test_calls_are_warmed_up_and_counted() -> None:
    seconds = iter([100.0, 100.0, 1.0, 2.0, 3.0, 100.0])
    assert repeat(lambda: next(seconds), Effort(runs=3, seconds=60.0)).median == 2.0
    assert list(seconds) == [100.0]


def test_no_call_starts_after_the_time_limit() -> None:
    calls: list[float] = []

    def call() -> float:
        calls.append(1.0)
        return 1.0

    result = repeat(call, Effort(runs=50, seconds=0.0))
    assert result.calls == 1
    assert len(calls) == timing.WARM_UP_CALLS + 1


def test_bytes_are_counted_on_a_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    product, a = jax.jit(jnp.matmul), jnp.ones((8, 8))
    assert compile_program(product, a, a).bytes_accessed >= 3 * a.nbytes
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compile_program(product, a, a).bytes_accessed is None


def test_a_program_has_its_cost() -> None:
    a, b = jnp.ones((8, 16)), jnp.ones((16, 32))
    result = compile_program(jax.jit(jnp.matmul), a, b, flops=8.0)
    assert result.flops == 8
    assert result.memory_bytes is not None
    assert result.memory_bytes >= a.nbytes + b.nbytes + 8 * 32 * 4
    assert result.compile_seconds > 0
    assert (result.run(a, b) == 16).all()


@pytest.mark.parametrize(
    ("flops", "bytes_accessed", "limit"),
    [(200.0, 10.0, 2.0), (200.0, 40.0, 4.0), (0.0, 10.0, 1.0)],
)
def test_the_roofline_is_the_slower_of_arithmetic_and_memory(
    flops: float, bytes_accessed: float, limit: float
) -> None:
    assert Peaks(100.0, 10.0).roofline_seconds(flops, bytes_accessed) == limit


def test_shares_of_the_peaks() -> None:
    peaks = Peaks(flops_per_second=100e12, bytes_per_second=10e12)
    columns = roofline_columns(program(40e12, 5e12), Timing(0.8, 0.7, 0.9, 5), 4, peaks)
    assert columns == pytest.approx(
        {
            "gflop_per_picture": 10e3,
            "achieved_tflops": 50.0,
            "share_of_peak_flops": 0.5,
            "share_of_roofline": 0.625,
        }
    )
    without_bytes = roofline_columns(program(40e12, None), Timing(0.8, 0.7, 0.9, 5), 4, peaks)
    del columns["share_of_roofline"]
    assert without_bytes == columns
    assert roofline_columns(program(None, None), Timing(0.8, 0.7, 0.9, 5), 4, peaks) == {}


def test_columns_of_a_call() -> None:
    assert timing_columns(Timing(0.5, 0.25, 1.0, 9), pictures=4) == {
        "median_ms": 500.0,
        "p10_ms": 250.0,
        "p90_ms": 1000.0,
        "calls": 9,
        "pictures_per_s": 8.0,
    }
    assert program_columns(program(1.0, 1.0)) == {"compile_s": 2.0, "memory_mb": 3.0}


def test_peaks_are_the_work_divided_by_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []

    def time_calls(call: Callable[[], jax.Array], effort: Effort) -> Timing:
        results.append(call())
        return Timing(median=1.0, p10=0.5, p90=2.0, calls=3)

    monkeypatch.setattr(device, "time_calls", time_calls)
    peaks = peaks_of("float32", matrix_side=32, copy_bytes=4096)
    assert peaks == Peaks(flops_per_second=2 * 32**3 / 0.5, bytes_per_second=2 * 4096 / 0.5)
    assert [result.shape for result in results] == [(32, 32), (1024,)]


def test_growth_is_relative_to_the_first_row_that_was_measured() -> None:
    medians = {2: 4.0, 8: 32.0}

    def measure(value: float) -> dict:
        return {"median_ms": medians[int(value)], "p10_ms": 1.0, "p90_ms": 9.0, "calls": 3}

    failed, first, second = growth_rows("boxes", [1, 2, 8], measure)
    assert failed == {"axis": "boxes", "value": 1, "failed": "KeyError: 1"}
    assert (first["ms_per_unit"], first["unit_cost_to_first"]) == (2.0, 1.0)
    assert (second["ms_per_unit"], second["unit_cost_to_first"]) == (4.0, 2.0)
    assert second["axis"] == "boxes"


def test_a_failed_case_keeps_the_rows_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    def measure() -> Iterator[dict]:
        yield {"stage": "network"}
        raise ValueError("shapes\ndiffer")

    case = {"batch": 2}
    assert list(rows_or_failure(case, measure)) == [
        {"batch": 2, "stage": "network"},
        {"batch": 2, "failed": "ValueError: shapes differ"},
    ]
    assert "Traceback" in capsys.readouterr().err


def test_wrong_input_and_interruptions_are_not_failed_cases() -> None:
    for error in (UserError("no such file"), KeyboardInterrupt()):

        def measure(error: BaseException = error) -> Iterator[dict]:
            raise error

        with pytest.raises(type(error)):
            list(rows_or_failure({}, measure))


def test_values_of_the_axes() -> None:
    assert doubling_up_to(1) == [1]
    assert doubling_up_to(6) == [1, 2, 4, 6]
    assert doubling_up_to(8) == [1, 2, 4, 8]
    assert canvases_up_to((800, 1344)) == [(224, 352), (416, 672), (608, 1024), (800, 1344)]
    assert canvases_up_to((32, 32)) == [(32, 32)]


def test_a_table_is_aligned_and_marks_missing_figures() -> None:
    rows = [
        {"stage": "network", "ms": 0.12345, "calls": 5},
        {"stage": "NMS", "ms": 1234.5, "share": 0.5, "calls": 50},
        {"stage": "whole", "ms": 99.96, "share": None, "calls": 7},
    ]
    text = table(Section("inference", "On the device.", rows))
    assert text.startswith("### inference\n\nOn the device.\n\n")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["stage", "ms", "calls", "share"]
    assert re.fullmatch("-+", cells[1][0])
    assert re.fullmatch("-+:", cells[1][1])
    assert cells[2:] == [
        ["network", "0.123", "5", "-"],
        ["NMS", "1234", "50", "0.500"],
        ["whole", "100", "7", "-"],
    ]


def test_results_are_written_as_json(tmp_path: Path) -> None:
    section = Section("peaks", "Measured.", [{"precision": "float32", "tflops": 1.5}])
    write_results(tmp_path, environment(), {"runs": 3}, [section])
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert content["format"] == 1
    assert content["options"] == {"runs": 3}
    assert content["sections"] == {"peaks": {"note": "Measured.", "rows": section.rows}}
    assert content["environment"]["packages"]["jax"] == jax.__version__
    assert content["environment"]["devices"] == jax.local_device_count()


def test_results_that_cannot_be_written_get_an_error_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent/benchmark.json: cannot be written"):
        write_results(tmp_path / "absent", {}, {}, [])
