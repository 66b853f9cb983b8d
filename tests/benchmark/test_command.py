"""The whole command on tiny shapes: sections, the JSON file, plots, and what is left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import jax
import pytest

from rpn_jax.benchmark import command, growth, peers, plots
from rpn_jax.benchmark.device import Peaks
from rpn_jax.benchmark.options import Options, parse_options
from rpn_jax.config import Config, load_config, save_config
from rpn_jax.errors import UserError


@pytest.fixture(autouse=True)
def _quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_peaks", lambda precision: Peaks(1e12, 1e10))


@pytest.fixture
def words(tiny_config: Config, tmp_path: Path) -> list[str]:
    path = tmp_path / "tiny.json"
    save_config(tiny_config, path)
    return [str(path), "--runs", "2", "--seconds", "5", "--out", str(tmp_path / "out")]


def results_of(words: list[str]) -> dict:
    options = parse_options(words, "benchmark")
    command.run(options)
    assert options.out is not None
    return json.loads((options.out / "benchmark.json").read_text())


def test_inference_training_and_peers(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = results_of(
        [*words, "--inference", "--train", "--matching", "--peers", "--batch-sizes", "2"]
    )
    assert list(results) == ["format", "environment", "options", "sections"]
    assert results["options"]["batch_sizes"] == [2]
    sections = results["sections"]
    assert list(sections) == [
        "matching",
        "peaks",
        "inference",
        "inference_peers",
        "training",
        "training_peers",
    ]
    printed = capsys.readouterr().out
    for name, section in sections.items():
        assert f"### {name}\n" in printed
        assert section["note"]
        assert section["rows"]
    assert {row["batch"] for row in sections["inference"]["rows"]} == {2}
    assert {row["size"] for row in sections["training"]["rows"]} == {"64x64"}
    for name in ("inference_peers", "training_peers"):
        assert all(row["times_ours_float32"] > 0 for row in sections[name]["rows"])
    assert (tmp_path / "out" / "inference.png").stat().st_size > 1000


def growth_row(axis: str) -> dict:
    (row,) = growth.growth_rows(
        axis, [growth.Point(1, {"median_ms": 1.0, "p10_ms": 1.0, "p90_ms": 1.0, "calls": 1})]
    )
    return row


def test_growth(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "CANDIDATES", (10, 20))
    monkeypatch.setattr(growth, "BOXES", (1, 2))
    devices = create_autospec(growth.device_growth, return_value=[growth_row("devices")])
    monkeypatch.setattr(growth, "device_growth", devices)
    monkeypatch.setattr(growth, "CANVAS_SHARES", (1.0,))
    sections = results_of([*words, "--growth", "--size", "64", "64"])["sections"]
    assert list(sections) == ["growth", "worst_cases"]
    axes = list(dict.fromkeys(row["axis"] for row in sections["growth"]["rows"]))
    assert axes == [
        "batch size",
        "megapixels",
        "candidates a level",
        "boxes a picture",
        "devices",
    ]
    assert (tmp_path / "out" / "growth.png").stat().st_size > 1000


def test_files_are_left_out_where_they_cannot_be_read(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.files, "missing_packages", lambda: ["cv2", "grain"])
    sections = results_of([*words, "--files"])["sections"]
    assert sections == {"files": {"note": "Left out: cv2, grain not installed.", "rows": []}}


def test_peers_are_left_out_without_torch(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    monkeypatch.setattr(command, "_measured", lambda *_: ())
    results = results_of([*words, "--inference", "--peers"])
    assert results["sections"]["inference_peers"] == {
        "note": "Left out: torch is not installed.",
        "rows": [],
    }


def test_peers_are_left_out_where_torch_cannot_follow(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "peer_device", lambda: None)
    monkeypatch.setattr(command, "_measured", lambda *_: ())
    section = results_of([*words, "--inference", "--peers"])["sections"]["inference_peers"]
    assert section["rows"] == []
    assert section["note"].startswith("Left out: PyTorch cannot use the device")


def test_all_measures_each_network_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []

    def figures(config: Config, precision: str, *_: object) -> dict:
        seen.append(config)
        assert precision == "bfloat16"
        return {"memory_mb": 1.0, "fps": float(len(seen))}

    monkeypatch.setattr(command, "_config_figures", figures)
    rows = results_of(
        ["--all", "--precisions", "bfloat16", "--out", str(tmp_path), "--size", "64", "64"]
    )["sections"]["configs"]["rows"]
    assert len(rows) == 11
    assert len(seen) == 7
    fps = {row["config"]: row["fps"] for row in rows}
    assert fps["rpn_r50_fpn_1x_coco"] == fps["rpn_r50_fpn_2x_coco"]
    assert fps["rpn_r50_fpn_1x_coco"] != fps["rpn_r50-caffe_fpn_1x_coco"]
    assert {row["backbone"] for row in rows} == {
        "R-50-FPN",
        "R-101-FPN",
        "R-50-C4",
        "X-101-32x4d-FPN",
        "X-101-64x4d-FPN",
    }


def out_of_memory(*_: object) -> None:
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out\nof memory")


def test_what_fails_says_so_and_the_other_figures_stay(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = command.inference_rows

    def fails_for_two(config: Config, variables: Any, batch_size: int, *rest: Any) -> Any:
        return (out_of_memory if batch_size == 2 else measure)(config, variables, batch_size, *rest)

    monkeypatch.setattr(command, "inference_rows", fails_for_two)
    sections = results_of([*words, "--batch-sizes", "1", "2", "--size", "64", "64"])["sections"]
    *measured, failed = sections["inference"]["rows"]
    assert {row["batch"] for row in measured} == {1}
    assert failed == {
        "precision": "float32",
        "batch": 2,
        "size": "64x64",
        "failed": "JaxRuntimeError: RESOURCE_EXHAUSTED: out of memory",
    }


def test_an_interruption_keeps_what_was_measured(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def rows(*_: object) -> Iterator[dict]:
        yield {"stage": "first"}
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_measured", rows)
    with pytest.raises(KeyboardInterrupt):
        results_of(words)
    results = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert results["sections"]["inference"]["rows"] == [{"stage": "first"}]
    assert "| first |" in capsys.readouterr().out


def test_a_step_that_fails_leaves_the_figures_of_inference(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "training_rows", out_of_memory)
    effort = command.Effort(runs=1, seconds=0.0)
    figures = command._config_figures(tiny_config, "float32", 2, (64, 64), True, effort)
    assert figures["fps"] > 0
    assert figures["failed"] == "JaxRuntimeError: RESOURCE_EXHAUSTED: out of memory"


def test_figures_of_a_config(tiny_config: Config) -> None:
    effort = command.Effort(runs=1, seconds=0.0)
    figures = command._config_figures(tiny_config, "float32", 2, (64, 64), True, effort)
    assert list(figures) == [
        "memory_mb",
        "fps",
        "gflop_per_picture",
        "share_of_roofline",
        "train_memory_mb",
        "train_pictures_per_s",
    ]
    assert all(value > 0 for value in figures.values())


@pytest.mark.parametrize(
    ("name", "size"),
    [("rpn_r50_fpn_1x_coco", (800, 1344)), ("rpn_r18_fpn_gn_small", (256, 320))],
)
def test_the_canvas_is_the_config_s_largest(name: str, size: tuple[int, int]) -> None:
    options = parse_options([name], "benchmark")
    assert command.canvas_of(options, load_config(name)) == size
    chosen: Options = replace(options, size=(64, 96))
    assert command.canvas_of(chosen, load_config(name)) == (64, 96)


def test_bad_input_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for words, wanted in (
        (
            ["rpn_r50_fpn_1x", "--out", str(tmp_path / "out")],
            "did you mean 'rpn_r50_fpn_1x_coco'?",
        ),
        (["rpn_demo", "--platform", "gpu"], "--platform gpu: JAX sees no GPU, only 'cpu'"),
        (["rpn_demo", "--out", str(tmp_path / "file")], "cannot be written"),
    ):
        with pytest.raises(UserError) as raised:
            command.run(parse_options(words, "benchmark"))
        assert wanted in str(raised.value)
        assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_plots_of_what_is_no_result(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="benchmark.json"):
        plots.plot_results(path, tmp_path)
    assert plots.main([str(path), str(tmp_path)]) == 2
