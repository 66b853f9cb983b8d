"""Measurements on tiny shapes: all figures exist and are consistent. Speed is not tested."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.stages import Compiled, Wrapped

from rpn_jax.benchmark import files, growth, process, stages, training
from rpn_jax.benchmark.device import Peaks
from rpn_jax.benchmark.figures import Row
from rpn_jax.benchmark.inputs import make_outputs
from rpn_jax.benchmark.second_stage import (
    BOX_HEAD,
    DETECTIONS,
    ROI_ALIGN,
    ROI_ALIGN_GRADIENT,
    SECOND_STAGE,
)
from rpn_jax.benchmark.stages import (
    CALLS_IN_FLIGHT,
    FEATURES,
    NETWORK,
    POST_PROCESSING,
    WHOLE,
    inference_rows,
    network_function,
    one_device,
    whole_row,
)
from rpn_jax.benchmark.timing import Effort, Program, count_flops, median_ratio
from rpn_jax.benchmark.training import STEP, matching_row, training_rows
from rpn_jax.config import Config, RoIHeadConfig, load_config, save_config
from rpn_jax.data.files import find_pictures
from rpn_jax.inference.forward import prepare_variables
from rpn_jax.models import variable_shapes
from rpn_jax.structures import Detections, Proposals, Variables
from tests.made_variables import random_variables

CANVAS = (64, 64)
FIRST_STAGE = [NETWORK, "top-k + decode", "NMS", POST_PROCESSING]
SECOND = [ROI_ALIGN, BOX_HEAD, DETECTIONS, SECOND_STAGE]
EFFORT = Effort(runs=2, seconds=60.0)
PEAKS = Peaks(flops_per_second=1e12, bytes_per_second=1e10)


def assert_consistent(row: Row, pictures: int) -> None:
    assert row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
    assert row["pictures_per_s"] == pytest.approx(1e3 * pictures / row["median_ms"])
    assert row["calls"] == EFFORT.runs


@pytest.fixture(scope="module")
def tiny_variables(tiny_config: Config) -> Variables:
    return jax.tree.map(jnp.asarray, random_variables(tiny_config))


@pytest.fixture(scope="module")
def tiny_detector(tiny_config: Config) -> Config:
    """A detector on the 64 channels of the first stage."""
    return replace(
        tiny_config,
        model=replace(tiny_config.model, roi=RoIHeadConfig(num_classes=3, channels=16)),
        rpn_proposals=replace(tiny_config.rpn_proposals, nms_pre=100, max_proposals=50),
        roi_loss=replace(tiny_config.roi_loss, nms_pre=100, max_proposals=50, samples_per_image=16),
    )


@pytest.fixture(scope="module")
def detector_variables(tiny_detector: Config) -> Variables:
    return jax.tree.map(jnp.asarray, random_variables(tiny_detector))


def echo_program(_: Wrapped, *arguments: Any, flops: float | None = None) -> Program:
    """Stand for `timing.compile_program`, without compiling: a call returns its arguments."""

    def run(*arguments: Any) -> tuple[Any, ...]:
        return arguments

    return Program(cast("Compiled", run), 0.0, flops, bytes_accessed=1.0, memory_bytes=1)


def test_stages_of_a_detector(tiny_detector: Config, detector_variables: Variables) -> None:
    rows, calls = inference_rows(tiny_detector, detector_variables, 2, CANVAS, PEAKS, EFFORT)
    in_flight = rows.pop()
    assert_consistent(in_flight, 2 * CALLS_IN_FLIGHT)
    by_stage = {row["stage"]: row for row in rows}
    assert list(by_stage) == list(calls) == [FEATURES, *FIRST_STAGE, *SECOND, WHOLE]
    for row in rows:
        assert_consistent(row, 2)
        assert row["compile_s"] > 0.01
        assert row["memory_mb"] > 0
    network, whole, head = (by_stage[stage] for stage in (NETWORK, WHOLE, BOX_HEAD))
    inputs = 7 * 7 * 64
    products = 2 * 50 * (inputs * 16 + 16 * 16 + 16 * (4 + 12))
    assert head["gflop_per_picture"] * 1e9 == pytest.approx(products, rel=0.1)
    assert whole["gflop_per_picture"] > network["gflop_per_picture"] + head["gflop_per_picture"]
    for row in (network, whole, head):
        expected = row["gflop_per_picture"] * 2 / row["median_ms"]
        assert row["achieved_tflops"] == pytest.approx(expected)
        assert row["share_of_peak_flops"] == pytest.approx(expected)
        assert row["share_of_roofline"] >= row["share_of_peak_flops"]
    assert calls[ROI_ALIGN]().shape == (2, 50, 7, 7, 64)
    assert isinstance(calls[WHOLE](), Detections)
    for stage in (POST_PROCESSING, DETECTIONS, WHOLE):
        assert int(calls[stage]().valid.sum()) == 2 * by_stage[stage]["boxes_out"]
    assert 0 < by_stage[POST_PROCESSING]["boxes_out"] <= 50
    assert by_stage[DETECTIONS]["boxes_out"] > 0


def test_stages_of_an_rpn(
    tiny_config: Config, tiny_variables: Variables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything else is the same as for a detector."""

    def not_measured(stage: stages.Stage, *_: object) -> tuple[Row, Callable[[], None]]:
        return {"stage": stage.name, "function": stage.function}, lambda: None

    monkeypatch.setattr(stages, "_measure", not_measured)
    case = (tiny_config, tiny_variables, 2, CANVAS)
    rows, _ = inference_rows(*case, PEAKS, EFFORT)
    assert [row["stage"] for row in rows[:-1]] == [*FIRST_STAGE, WHOLE]
    arguments = stages.whole_arguments(*case)
    assert isinstance(jax.eval_shape(rows[-2]["function"], *arguments), Proposals)


def test_the_training_step_of_a_detector(
    tiny_detector: Config, detector_variables: Variables
) -> None:
    rows, calls = training_rows(tiny_detector, detector_variables, 2, CANVAS, PEAKS, EFFORT)
    assert [row["stage"] for row in rows] == list(calls) == [STEP, ROI_ALIGN_GRADIENT]
    for row in rows:
        assert_consistent(row, 2)
    assert math.isfinite(rows[0]["gflop_per_picture"])
    state, metrics = calls[STEP]()
    before = int(state.step)  # The next call reuses the memory of the state.
    assert int(calls[STEP]()[0].step) == before + 1
    assert set(metrics) >= {"loss_rpn_cls", "loss_cls", "loss_bbox"}
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(detector_variables))
    pooled, gradients = calls[ROI_ALIGN_GRADIENT]()
    assert pooled.shape == (2, 16, 7, 7, 64)
    assert gradients[0].any()


def test_flops_of_the_network_are_those_of_its_convolutions() -> None:
    config = load_config("rpn_r50_fpn_1x_coco")
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(config))
    weights = prepare_variables(config, zeros, one_device())
    images = jax.ShapeDtypeStruct((1, 800, 1344, 3), "uint8")
    sizes = jax.ShapeDtypeStruct((1, 2), "int32")
    flops = count_flops(network_function(config), weights, images, sizes)
    # ResNet-50 without its classifier is 4.09 GMAC at 224x224; pyramid and head by hand.
    pixels = [800 * 1344 // stride**2 for stride in (4, 8, 16, 32)] + [13 * 21]
    laterals = sum(n * c * 256 for n, c in zip(pixels, (256, 512, 1024, 2048), strict=False))
    outputs = sum(pixels[:4]) * 9 * 256 * 256
    head = sum(pixels) * (9 * 256 * 256 + 256 * 15)
    trunk = 4.087e9 * (800 * 1344) / 224**2
    assert flops == pytest.approx(2 * (trunk + laterals + outputs + head), rel=0.03)


def test_flops_are_not_known_without_the_cpu_backend(
    tiny_config: Config, tiny_variables: Variables, monkeypatch: pytest.MonkeyPatch
) -> None:
    product, square = jax.jit(lambda x: x @ x), jnp.zeros((4, 4))
    assert count_flops(product, square) == 2 * 4**3
    monkeypatch.setattr(stages, "count_flops", lambda *_: None)
    monkeypatch.setattr(training, "count_flops", lambda *_: None)
    for module in (stages, training):
        monkeypatch.setattr(module, "compile_program", echo_program)
    case = (tiny_config, tiny_variables, 2, CANVAS, PEAKS, EFFORT)
    whole = whole_row(*case)
    (step,), _ = training_rows(*case)
    for row in (whole, step):
        assert row["median_ms"] > 0
        assert "gflop_per_picture" not in row
    monkeypatch.setattr(jax, "local_devices", Mock(side_effect=RuntimeError("no such backend")))
    assert count_flops(product, square) is None


def test_a_ratio_uses_the_second_of_two_equal_calls() -> None:
    called: list[str] = []

    def timed_call(name: str, seconds: float) -> float:
        cold = called[-1:] != [name]
        called.append(name)
        return seconds + 100 * cold

    ratio = median_ratio(lambda: timed_call("a", 6.0), lambda: timed_call("b", 2.0), EFFORT)
    assert ratio == 3
    assert called[:8] == ["a", "a", "b", "b", "a", "a", "b", "b"]


def test_matching_samples_the_config_s_number_of_anchors(pyramid_config: Config) -> None:
    row = matching_row(pyramid_config, CANVAS, 12, EFFORT)
    assert_consistent(row, 1)
    assert row["anchors"] == 3 * (16**2 + 8**2 + 4**2)
    assert row["boxes"] == 12
    assert row["positives"] > 0
    assert row["positives"] + row["negatives"] == pyramid_config.rpn_loss.samples_per_image


def test_worst_cases_keep_the_right_number_of_boxes(pyramid_config: Config) -> None:
    all_kept = 3 * 3 * 16**2 // 2  # three levels' alternate boxes
    settings = replace(pyramid_config.rpn_proposals, max_proposals=all_kept + 1)
    config = replace(pyramid_config, rpn_proposals=settings)
    rows = {row["boxes"]: row for row in growth.worst_case_rows(config, CANVAS, EFFORT)}
    assert rows["all boxes equal"]["boxes_out"] == 3
    assert rows["each suppresses the next"]["boxes_out"] == all_kept
    assert rows["no valid box"]["boxes_out"] == 0
    assert 3 < rows["ordinary"]["boxes_out"] < all_kept


def test_growth_has_a_row_for_each_value(
    tiny_config: Config, tiny_variables: Variables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "compile_program", echo_program)
    config, variables = tiny_config, tiny_variables
    tables = {
        "batch size": growth.batch_growth(config, variables, [1, 2], CANVAS, EFFORT),
        "megapixels": growth.size_growth(config, variables, [(32, 32), CANVAS], EFFORT),
        "candidates per level": growth.candidate_growth(config, [10, 20], CANVAS, EFFORT),
        "boxes per picture": growth.box_growth(config, [1, 2], CANVAS, EFFORT),
    }
    for axis, table in tables.items():
        rows = list(table)
        assert [row["axis"] for row in rows] == [axis, axis]
        assert rows[0]["unit_cost_to_first"] == 1.0
        first, second = rows
        assert second["value"] in (2 * first["value"], 4 * first["value"])
        assert first["ms_per_unit"] == pytest.approx(first["median_ms"] / first["value"])


def test_candidates_grow_to_the_anchors_of_the_largest_level(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "compile_program", echo_program)
    anchors = make_outputs(tiny_config, 1, CANVAS, seed=0).objectness[0].size
    rows = list(growth.candidate_growth(tiny_config, [10, 10**6, 10**7], CANVAS, EFFORT))
    assert [row["value"] for row in rows] == [10, anchors]


@pytest.mark.parametrize(("visible", "used"), [(None, "0,1"), ("2,3,5", "2,3"), ("", "0,1")])
def test_growth_over_gpus_uses_visible_devices_only(
    visible: str | None, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert growth._devices_environment(2)["CUDA_VISIBLE_DEVICES"] == used


def test_growth_over_devices_runs_on_that_many_devices(tiny_config: Config, tmp_path: Path) -> None:
    save_config(tiny_config, tmp_path / "tiny.json")
    config = str(tmp_path / "tiny.json")
    (row,) = growth.device_growth(config, "float32", 1, CANVAS, [2], EFFORT)
    assert (row["axis"], row["value"], row["calls"]) == ("devices", 2, EFFORT.runs)
    count = "import jax; print(jax.local_device_count())"
    assert process.run_python(["-c", count], growth._devices_environment(2)) == "2\n"


def test_reading_files_and_files_to_proposals(
    tiny_config: Config, tiny_variables: Variables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MADE_FILES", 4)
    monkeypatch.setattr(files, "MADE_SIZE", (120, 160))
    monkeypatch.setattr(files, "PICTURES_PER_THREAD", 6)
    assert files.missing_packages() == []
    config = files.config_for_canvas(load_config("rpn_demo"), (32, 64), 2)
    assert config.data.buckets == ((32, 64), (64, 32))
    assert config.data.scale == (64, 32)
    config = replace(config, model=tiny_config.model)
    with files.picture_folder(None) as folder:
        pictures = find_pictures([str(folder)])
        assert len(pictures) == files.MADE_FILES
        reading = list(files.reading_rows(config, pictures, [1, 2], EFFORT))
        proposing = list(files.proposing_rows(config, tiny_variables, pictures, 1, EFFORT))
    assert not folder.exists()
    assert [(row["resize"], row["threads"], row["pictures"]) for row in reading] == [
        ("host", 1, 8),
        ("host", 2, 12),
        ("device", 1, 8),
        ("device", 2, 12),
    ]
    assert [row["resize"] for row in proposing] == ["host", "device"]
    for row in (*reading, *proposing):
        assert_consistent(row, row["pictures"])
    for row in proposing:
        share = row["pictures_per_s"] / row["device_pictures_per_s"]
        assert row["share_of_device"] == pytest.approx(share)


def test_the_user_s_folder_of_pictures_is_not_deleted(tmp_path: Path) -> None:
    with files.picture_folder(tmp_path) as folder:
        assert folder == tmp_path
    assert tmp_path.is_dir()


def test_imports_are_timed_in_new_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "IMPORT_EFFORT", Effort(runs=1, seconds=0.0))
    light, heavy = process.import_rows()
    assert 0 < light["median_s"] < heavy["median_s"]


def test_memory_is_that_of_the_child(tiny_config: Config, tmp_path: Path) -> None:
    save_config(tiny_config, tmp_path / "tiny.json")
    row = process.memory_row(str(tmp_path / "tiny.json"), "float32", CANVAS)
    assert 50 < row["peak_resident_mb"] < 1500
    assert row["peak_device_mb"] is None  # the CPU's allocator keeps no count


def test_a_failed_child_gives_its_last_line_and_prints_the_rest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = "import sys; print('first', file=sys.stderr); sys.exit('no such thing')"
    with pytest.raises(process.ChildError, match="^exit code 1: no such thing$"):
        process.run_python(["-c", code], {})
    assert "first" in capsys.readouterr().err


def test_a_batch_that_the_devices_cannot_share_uses_fewer(
    tiny_config: Config, tiny_variables: Variables, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, *_ = jax.local_devices()
    monkeypatch.setattr(jax, "local_devices", lambda **_: [device, device])
    monkeypatch.setattr(training, "count_flops", lambda *_: None)
    step = training.time_training(tiny_config, tiny_variables, 1, CANVAS, EFFORT)
    assert step.devices == 1
    assert step.timing.calls == EFFORT.runs
