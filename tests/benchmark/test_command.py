"""The whole command on tiny shapes: sections, the JSON file, plots, and skipped parts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import jax
import pytest

from rpn_jax.benchmark import all_configs, command, growth, network, peers, plots, process
from rpn_jax.benchmark.device import Peaks
from rpn_jax.benchmark.options import Options
from rpn_jax.benchmark.timing import Effort
from rpn_jax.config import Config, config_names, load_config, save_config
from rpn_jax.errors import UserError


@pytest.fixture(autouse=True)
def _quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (command, network, all_configs):
        monkeypatch.setattr(module, "measured_peaks", lambda precision: Peaks(1e12, 1e10))


@pytest.fixture
def options(tiny_config: Config, tmp_path: Path) -> Options:
    path = tmp_path / "tiny.json"
    save_config(tiny_config, path)
    return Options(str(path), runs=2, seconds=5.0, out=tmp_path / "out")


def results_of(options: Options) -> dict:
    command.run(options)
    assert options.out is not None
    return json.loads((options.out / "benchmark.json").read_text())


@pytest.mark.usefixtures("one_thread_of_torch")
def test_inference_training_and_peers(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = replace(
        options, inference=True, train=True, matching=True, peers=True, batch_sizes=(2,)
    )
    results = results_of(wanted)
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
    times = {"median_ms": 1.0, "p10_ms": 1.0, "p90_ms": 1.0, "calls": 1}
    (row,) = growth.growth_rows(axis, [1], lambda value: times)
    return row


def test_growth(options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "CANDIDATES", (10,))
    monkeypatch.setattr(growth, "BOXES", (1,))
    devices = create_autospec(growth.device_growth, return_value=[growth_row("devices")])
    monkeypatch.setattr(growth, "device_growth", devices)
    monkeypatch.setattr(growth, "CANVAS_SHARES", (1.0,))
    sections = results_of(replace(options, growth=True, size=(64, 64)))["sections"]
    assert list(sections) == ["growth", "worst_cases"]
    rows = sections["growth"]["rows"]
    assert all(row["median_ms"] > 0 for row in (*rows, *sections["worst_cases"]["rows"]))
    assert [row["axis"] for row in rows] == [
        "batch size",
        "megapixels",
        "candidates per level",
        "boxes per picture",
        "devices",
    ]
    assert (tmp_path / "out" / "growth.png").stat().st_size > 1000


def test_files_are_skipped_without_the_packages_that_read_them(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.files, "missing_packages", lambda: ["cv2", "grain"])
    sections = results_of(replace(options, files=True))["sections"]
    assert sections == {"files": {"note": "Skipped: cv2, grain not installed.", "rows": []}}


def test_peers_are_skipped_without_torch(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "find_spec", lambda name: None)
    monkeypatch.setattr(network, "_own_rows", lambda *_: ())
    results = results_of(replace(options, peers=True))
    assert results["sections"]["inference_peers"] == {
        "note": "Skipped: torch is not installed.",
        "rows": [],
    }


def test_peers_are_skipped_if_torch_cannot_use_the_device(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "peer_device", lambda: None)
    monkeypatch.setattr(network, "_own_rows", lambda *_: ())
    section = results_of(replace(options, peers=True))["sections"]["inference_peers"]
    assert section["rows"] == []
    assert section["note"].startswith("Skipped: PyTorch cannot use the device")


def test_all_measures_each_network_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []

    def figures(config: Config, precision: str, *_: object) -> dict:
        seen.append(config)
        assert precision == "bfloat16"
        return {"memory_mb": 1.0, "fps": float(len(seen))}

    monkeypatch.setattr(all_configs, "_config_figures", figures)
    options = Options(all=True, precisions=("bfloat16",), out=tmp_path, size=(64, 64))
    rows = results_of(options)["sections"]["configs"]["rows"]
    assert [row["config"] for row in rows] == [
        name for name in config_names() if name.endswith("_coco")
    ]
    assert len(seen) == len({row["fps"] for row in rows}) < len(rows)
    by_name = {row["config"]: row for row in rows}
    fps = {name: row["fps"] for name, row in by_name.items()}
    assert fps["rpn_r50_fpn_1x_coco"] == fps["rpn_r50_fpn_2x_coco"]
    assert fps["rpn_r50_fpn_1x_coco"] != fps["rpn_r50-caffe_fpn_1x_coco"]
    assert {row["backbone"] for row in rows} == {
        "R-50-FPN",
        "R-101-FPN",
        "R-50-C4",
        "R-50-DC5",
        "X-101-32x4d-FPN",
        "X-101-32x8d-FPN",
        "X-101-64x4d-FPN",
    }
    assert by_name["rpn_r50_fpn_1x_coco"]["detector"] == "RPN"
    assert by_name["faster-rcnn_r50_fpn_1x_coco"]["detector"] == "Faster R-CNN"


def out_of_memory(*_: object) -> None:
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out\nof memory")


def test_a_failed_case_is_a_row_and_the_run_continues(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = network.inference_rows

    def fails_for_two(config: Config, variables: Any, batch_size: int, *rest: Any) -> Any:
        return (out_of_memory if batch_size == 2 else measure)(config, variables, batch_size, *rest)

    monkeypatch.setattr(network, "inference_rows", fails_for_two)
    sections = results_of(replace(options, batch_sizes=(1, 2), size=(64, 64)))["sections"]
    *measured, failed = sections["inference"]["rows"]
    assert {row["batch"] for row in measured} == {1}
    assert failed == {
        "precision": "float32",
        "batch": 2,
        "size": "64x64",
        "failed": "JaxRuntimeError: RESOURCE_EXHAUSTED: out of memory",
    }


def test_an_interruption_keeps_what_was_measured(
    options: Options,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def rows(*_: object) -> Iterator[dict]:
        yield {"stage": "first"}
        raise KeyboardInterrupt

    monkeypatch.setattr(network, "_own_rows", rows)
    with pytest.raises(KeyboardInterrupt):
        results_of(options)
    results = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert results["sections"]["inference"]["rows"] == [{"stage": "first"}]
    assert "| first |" in capsys.readouterr().out


def test_a_failed_training_step_keeps_the_figures_of_inference(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_configs, "training_rows", out_of_memory)
    effort = Effort(runs=1, seconds=0.0)
    figures = all_configs._config_figures(tiny_config, "float32", 2, (64, 64), True, effort)
    assert figures["fps"] > 0
    assert figures["failed"] == "JaxRuntimeError: RESOURCE_EXHAUSTED: out of memory"


def test_figures_of_a_config(tiny_config: Config) -> None:
    effort = Effort(runs=1, seconds=0.0)
    figures = all_configs._config_figures(tiny_config, "float32", 2, (64, 64), True, effort)
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
    options = Options(name)
    assert options.canvas_of(load_config(name)) == size
    chosen = replace(options, size=(64, 96))
    assert chosen.canvas_of(load_config(name)) == (64, 96)


def test_wrong_input_is_reported_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    (tmp_path / "file").write_text("")
    for options, wanted in (
        (
            Options("rpn_r50_fpn_1x", out=tmp_path / "out"),
            "did you mean 'rpn_r50_fpn_1x_coco'?",
        ),
        (Options("rpn_demo", platform="gpu"), "--platform gpu: JAX sees no GPU, only 'cpu'"),
        (Options("rpn_demo", out=tmp_path / "file"), "cannot be written"),
        (Options("rpn_demo", runs=0), "--runs 0: must be 1 or more"),
    ):
        with pytest.raises(UserError) as raised:
            command.run(options)
        assert wanted in str(raised.value)
        assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_file_that_is_not_a_result_is_not_plotted(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="benchmark.json"):
        plots.plot_results(path, tmp_path)


def test_memory_is_not_preallocated_if_child_processes_share_the_device(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    monkeypatch.setattr(command, "_measurements", lambda *_: iter(()))
    for part in ("peers", "growth", "process"):
        monkeypatch.delenv(name, raising=False)
        command.run(Options(options.config, inference=True, **{part: True}))
        assert command.os.environ[name] == "false"
    monkeypatch.delenv(name, raising=False)
    command.run(Options(options.config))
    assert name not in command.os.environ


def test_on_a_gpu_peers_are_measured_in_new_processes_before_ours(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def child_rows(config: str, batch_size: int, *_: object) -> Iterator[dict]:
        assert config == options.config
        order.append(f"PyTorch {batch_size}")
        yield {"peer": "eager", "stage": "network", "median_ms": 12.0}
        if batch_size == 2:
            raise process.ChildError("exit code 1: out of memory")

    def own_rows(config: Config, variables: Any, batch_size: int, *_: object) -> Any:
        order.append(f"ours {batch_size}")
        times = {"median_ms": 3.0 * batch_size, "p10_ms": 1.0, "p90_ms": 9.0}
        return [{"stage": "network", **times}], {}

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(peers, "peer_device", lambda: peers.CPU)
    monkeypatch.setattr(peers, "child_rows", child_rows)
    monkeypatch.setattr(network, "inference_rows", own_rows)
    sections = results_of(replace(options, peers=True, batch_sizes=(1, 2)))["sections"]
    assert order == ["PyTorch 1", "PyTorch 2", "ours 1", "ours 2"]
    first, second, failed = sections["inference_peers"]["rows"]
    assert (first["batch"], first["times_ours_float32"]) == (1, 4.0)
    assert (second["batch"], second["times_ours_float32"]) == (2, 2.0)
    assert failed == {"batch": 2, "failed": "ChildError: exit code 1: out of memory"}
