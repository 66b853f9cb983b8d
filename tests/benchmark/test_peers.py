"""PyTorch's networks compute the same as ours; their rows and ratios."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import create_autospec

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from rpn_jax.benchmark import peer_calls, peers, second_stage
from rpn_jax.benchmark.inputs import feature_shapes, make_batch, make_outputs, output_shapes
from rpn_jax.benchmark.second_stage import (
    BOX_HEAD,
    DETECTIONS,
    ROI_ALIGN,
    ROI_ALIGN_GRADIENT,
    SECOND_STAGE,
)
from rpn_jax.benchmark.stages import (
    FEATURES,
    NETWORK,
    POST_PROCESSING,
    WHOLE,
    network_function,
    one_device,
)
from rpn_jax.benchmark.timing import WARM_UP_CALLS, Effort
from rpn_jax.benchmark.torch_network import TorchDetector
from rpn_jax.benchmark.torch_variants import CPU_VARIANTS, CUDA_VARIANTS, set_precision
from rpn_jax.benchmark.training import STEP
from rpn_jax.config import BackboneConfig, Config, load_config
from rpn_jax.inference.forward import prepare_variables
from rpn_jax.models import build_detector, variable_shapes
from rpn_jax.models.rpn.proposals import propose
from rpn_jax.models.rpn.targets import batch_targets
from rpn_jax.ops import grid_anchors
from rpn_jax.structures import Batch
from rpn_jax.training.optim import trainable_parameters
from rpn_jax.weights.torch.names import torch_key
from tests.made_variables import random_variables

pytestmark = pytest.mark.usefixtures("one_thread_of_torch")

CANVAS = (96, 64)
SECOND_STAGES = [ROI_ALIGN, BOX_HEAD, DETECTIONS, SECOND_STAGE]
CPU = torch.device("cpu")


def config_of(name: str, backbone: BackboneConfig | None = None) -> Config:
    """Return a config with its backbone or another one, narrow heads and few boxes."""
    config = load_config(name)
    model = replace(
        config.model,
        backbone=backbone or config.model.backbone,
        neck_channels=32,
        rpn=replace(config.model.rpn, channels=32),
        roi=config.model.roi and replace(config.model.roi, channels=16),
    )
    return replace(
        config,
        model=model,
        rpn_proposals=replace(config.rpn_proposals, nms_pre=40, max_proposals=20),
        roi_loss=replace(config.roi_loss, samples_per_image=8),
    )


R50 = "rpn_r50_fpn_1x_coco"
CONFIGS = {
    "r18_gn": config_of("rpn_r18_fpn_gn_small"),
    "r34": config_of(R50, BackboneConfig(depth=34)),
    "r50_caffe": config_of("rpn_r50-caffe_fpn_1x_coco"),
    "faster_r18_gn": config_of("faster-rcnn_r18_fpn_gn_small"),
    "faster_r50_c4": config_of("faster-rcnn_r50-caffe_c4-1x_coco"),
    "faster_r50_dc5": config_of("faster-rcnn_r50-caffe-dc5_1x_coco"),
    "x50_8x8d": config_of(R50, BackboneConfig(depth=50, groups=8, base_width=8)),
}


def torch_network(config: Config, variables: dict) -> TorchDetector:
    weights = peer_calls.state_dict(variables)
    network = network_without_weights(config)
    tensors = {key: torch.tensor(array) for key, array in weights.items()}
    network.load_state_dict(tensors, assign=True)
    return network


def network_without_weights(config: Config) -> TorchDetector:
    """Return the network on the device that has no memory: PyTorch draws no random weights."""
    with torch.device("meta"):
        return TorchDetector(config.model)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_plain_network_has_the_same_outputs_as_ours(config: Config) -> None:
    variables = random_variables(config)
    batch = make_batch(2, CANVAS, boxes=1, seed=0)
    weights = prepare_variables(config, variables, one_device())
    ours = network_function(config)(weights, batch.images, batch.image_sizes)
    network = peer_calls.FromPixels(torch_network(config, variables), config.pixels, torch.float32)
    with torch.inference_mode():
        _, theirs = network(peer_calls.torch_pictures(batch, CPU_VARIANTS[0], CPU))
    for mine, other in zip(peer_calls.torch_levels(ours, CPU), theirs, strict=True):
        for one, two in zip(mine, other, strict=True):
            assert one.shape == two.shape
            assert torch.linalg.norm(one - two) < 1e-5 * torch.linalg.norm(one)


@pytest.mark.parametrize("name", ["faster_r18_gn", "faster_r50_c4"])
def test_the_plain_box_head_has_the_same_outputs_as_ours(name: str) -> None:
    config = CONFIGS[name]
    variables = random_variables(config)
    levels = feature_shapes(config, 1, CANVAS)
    size = 14 if name == "faster_r50_c4" else 7
    pooled = np.random.default_rng(0).normal(size=(1, 3, size, size, levels[0].shape[-1]))
    weights = prepare_variables(config, variables, one_device())
    ours = second_stage.box_head_function(config)(weights, pooled.astype(np.float32))
    channels_first = torch.tensor(pooled[0], dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.inference_mode():
        logits, deltas = torch_network(config, variables).eval().roi_head(channels_first)
    np.testing.assert_allclose(ours.class_logits[0], logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.deltas[0].reshape(3, -1), deltas, rtol=1e-4, atol=1e-4)


def test_the_plain_peer_of_a_detector_has_its_parts_that_need_no_torchvision() -> None:
    config = CONFIGS["faster_r18_gn"]
    variables, batch = random_variables(config), make_batch(1, CANVAS, boxes=1, seed=0)
    peer = peer_calls.make_peer(config, variables, batch, CPU)
    with torch.inference_mode():
        calls = peer_calls.inference_calls(config, peer, CPU_VARIANTS[0], batch, CANVAS, CPU)
        assert list(calls) == [FEATURES, NETWORK, BOX_HEAD]
        logits, _ = calls[BOX_HEAD]()
    assert logits.shape == (config.rpn_proposals.max_proposals, 81)
    assert len(calls[FEATURES]()) == 5


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_plain_network_trains_the_same_parameters_as_ours(config: Config) -> None:
    shapes = variable_shapes(config)
    trains = flatten_dict(
        trainable_parameters(shapes["params"], build_detector(config.model).backbone)
    )
    ours = {torch_key(("params", *path)) for path, trained in trains.items() if trained}
    network = network_without_weights(config)
    network.train()
    assert {name for name, p in network.named_parameters() if p.requires_grad} == ours
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)


def test_outputs_are_converted_to_pytorch_s_layout() -> None:
    rng = np.random.default_rng(0)
    outputs = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        output_shapes(CONFIGS["r18_gn"], 2, CANVAS),
    )
    logits, deltas = peer_calls.torch_levels(outputs, CPU)[0]
    assert float(logits[1, 2, 5, 7]) == float(outputs.objectness[0][1, 5, 7, 2])
    assert float(deltas[1, 2 * 4 + 3, 5, 7]) == float(outputs.deltas[0][1, 5, 7, 2, 3])


def test_pixels_of_both_orders() -> None:
    class Nothing(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images

    pixels = CONFIGS["r50_caffe"].pixels
    assert pixels.order == "bgr"
    rgb = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    seen = peer_calls.FromPixels(Nothing(), pixels, torch.float32)(rgb).flatten().tolist()
    expected = [30 - pixels.mean[0], 20 - pixels.mean[1], 10 - pixels.mean[2]]
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
def test_a_row_for_each_variant(train: bool) -> None:
    config = CONFIGS["r18_gn"]
    variables = random_variables(config)
    stage, seen = STEP if train else NETWORK, []
    ours = {
        stage: {"float32": lambda: seen.append("float32")},
        "another stage": {"float32": lambda: seen.append("another")},
    }
    effort = Effort(runs=1, seconds=0.0)
    rows = list(
        peers.peer_rows(config, variables, 1, CANVAS, train, CPU, effort, ours, CPU_VARIANTS)
    )
    assert [row["peer"] for row in rows] == [f"PyTorch {v.name}" for v in CPU_VARIANTS]
    for row in rows:
        assert row["stage"] == stage
        assert row["times_ours_float32"] > 1
        assert row["pictures_per_s"] == pytest.approx(1e3 / row["median_ms"])
        assert row["first_call_s"] > 0
    assert set(seen) == {"float32"}


@pytest.mark.parametrize("name", ["r18_gn", "faster_r18_gn"])
def test_a_training_step_changes_the_weights(name: str) -> None:
    config = CONFIGS[name]
    variables, batch = random_variables(config), make_batch(1, CANVAS, boxes=1, seed=0)
    peer = peer_calls.make_peer(config, variables, batch, CPU)
    before = {name: p.detach().clone() for name, p in peer.network.named_parameters()}
    calls = peer_calls.training_calls(config, peer, CPU_VARIANTS[0], batch, CANVAS, CPU)
    assert list(calls) == [STEP]
    calls[STEP]()
    moved = {n for n, p in peer.network.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(before)


def test_a_failed_variant_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(peers, "make_peer", fail)
    config = CONFIGS["r18_gn"]
    variables, effort = random_variables(config), Effort(runs=1, seconds=0.0)
    rows = peers.peer_rows(config, variables, 1, CANVAS, False, CPU, effort, {}, CPU_VARIANTS)
    assert {row["failed"] for row in rows} == {"RuntimeError: out of memory and more"}


@pytest.fixture(scope="module")
def torchvision_case() -> tuple[Config, dict, Batch]:
    """Return torchvision's network with few candidates, so that both of its limits apply."""
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    config = load_config(R50)
    proposals = replace(config.rpn_proposals, nms_pre=200, max_proposals=150)
    config = replace(config, rpn_proposals=proposals)
    return config, random_variables(config), make_batch(2, CANVAS, boxes=3, seed=0)


def test_torchvision_has_the_same_outputs_as_ours(
    torchvision_case: tuple[Config, dict, Batch],
) -> None:
    config, variables, batch = torchvision_case
    peer = peer_calls.make_peer(config, variables, batch, CPU)
    assert type(peer.network).__name__ == "TorchvisionRPN"
    weights = prepare_variables(config, variables, one_device())
    ours = network_function(config)(weights, batch.images, batch.image_sizes)
    network = peer_calls.FromPixels(peer.network.eval(), config.pixels, torch.float32)
    with torch.inference_mode():
        _, theirs = network(peer_calls.torch_pictures(batch, CPU_VARIANTS[0], CPU))
    for mine, other in zip(peer_calls.torch_levels(ours, CPU), theirs, strict=True):
        for one, two in zip(mine, other, strict=True):
            assert one.shape == two.shape
            assert torch.linalg.norm(one - two) < 1e-5 * torch.linalg.norm(one)


def test_torchvision_makes_the_same_proposals_as_ours(
    torchvision_case: tuple[Config, dict, Batch],
) -> None:
    config, variables, batch = torchvision_case
    peer = peer_calls.make_peer(config, variables, batch, CPU)
    assert peer.propose is not None
    outputs = make_outputs(config, 2, CANVAS, seed=0)
    ours = propose(config, outputs, batch.image_sizes)
    theirs = peer.propose(peer_calls.torch_levels(outputs, CPU))
    for boxes, valid, others in zip(ours.boxes, ours.valid, theirs, strict=True):
        assert int(valid.sum()) == len(others) == config.rpn_proposals.max_proposals
        distances = np.abs(np.asarray(boxes)[:, None] - others.numpy()[None]).max(axis=-1)
        assert (distances.min(axis=1) < 1e-2).all()
        assert (distances.min(axis=0) < 1e-2).all()


def test_torchvision_matches_the_same_anchors_as_ours(
    torchvision_case: tuple[Config, dict, Batch],
) -> None:
    config, variables, batch = torchvision_case
    # torchvision assigns the best anchors to a box without a lower limit of the IoU.
    loss = replace(config.rpn_loss, samples_per_image=0, min_positive_iou=1e-6)
    config = replace(config, rpn_loss=loss)
    outputs = make_outputs(config, 2, CANVAS, seed=0)
    ours = batch_targets(
        config,
        outputs.level_shapes,
        batch.boxes_xyxy,
        batch.box_mask,
        batch.image_sizes,
        jax.random.key(0),
    )
    network = peer_calls.make_peer(config, variables, batch, CPU).network
    levels = grid_anchors(outputs.level_shapes, config.model.rpn.anchors)
    anchors = torch.tensor(np.concatenate(levels))
    truth = [{"boxes": torch.tensor(np.asarray(boxes))} for boxes in batch.boxes_xyxy]
    labels, _ = network.rpn.assign_targets_to_anchors([anchors] * 2, truth)
    for positive, negative, of_picture in zip(ours.positive, ours.negative, labels, strict=True):
        np.testing.assert_array_equal(positive, of_picture == 1)
        np.testing.assert_array_equal(negative, of_picture == 0)


def test_torchvision_trains_the_same_parameters_as_ours(
    torchvision_case: tuple[Config, dict, Batch],
) -> None:
    from rpn_jax.benchmark.torchvision_rpn import torchvision_key

    config, variables, batch = torchvision_case
    peer = peer_calls.make_peer(config, variables, batch, CPU)
    peer.network.train()
    images = peer_calls.torch_pictures(batch, CPU_VARIANTS[0], CPU)
    loss = peer.loss(*peer_calls.FromPixels(peer.network, config.pixels, torch.float32)(images))
    loss.backward()
    assert torch.isfinite(loss)
    moved = {
        name
        for name, parameter in peer.network.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.any())
    }
    assert all(p.grad is None or p.grad.isfinite().all() for p in peer.network.parameters())
    trains = flatten_dict(
        trainable_parameters(variables["params"], build_detector(config.model).backbone)
    )
    keys = (torch_key(("params", *path)) for path, trained in trains.items() if trained)
    assert moved == {torchvision_key(key) for key in keys}
    norms = [m for m in peer.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)


@pytest.mark.parametrize(
    ("train", "stages"),
    [(False, [NETWORK, POST_PROCESSING, WHOLE]), (True, [STEP])],
    ids=["inference", "training"],
)
def test_torchvision_has_every_stage(
    train: bool, stages: list[str], torchvision_case: tuple[Config, dict, Batch]
) -> None:
    config, variables, _ = torchvision_case
    effort = Effort(runs=1, seconds=0.0)
    rows = peers.peer_rows(config, variables, 1, CANVAS, train, CPU, effort, {}, CPU_VARIANTS)
    assert [(row["peer"], row["stage"]) for row in rows] == [
        (f"torchvision {variant.name}", stage) for variant in CPU_VARIANTS for stage in stages
    ]


@pytest.fixture(scope="module")
def torchvision_detector() -> tuple[Config, dict, Batch]:
    """Return torchvision's Faster R-CNN with few boxes."""
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    config = load_config("faster-rcnn_r50_fpn_1x_coco")
    config = replace(
        config,
        rpn_proposals=replace(config.rpn_proposals, nms_pre=200, max_proposals=60),
        roi_loss=replace(config.roi_loss, nms_pre=200, max_proposals=60, samples_per_image=32),
    )
    return config, random_variables(config), make_batch(2, CANVAS, boxes=3, seed=0)


def test_torchvision_has_the_same_second_stage_as_ours(
    torchvision_detector: tuple[Config, dict, Batch],
) -> None:
    config, variables, batch = torchvision_detector
    made = second_stage.second_stage_inputs(config, 2, CANVAS)
    pooled = second_stage.roi_align_function(config)(made.levels, made.boxes_xyxy)
    weights = prepare_variables(config, variables, one_device())
    outputs = second_stage.box_head_function(config)(weights, pooled)
    ours = second_stage.detections_function(config)(
        made.outputs, made.boxes_xyxy, made.box_mask, made.image_sizes
    )
    peer = peer_calls.make_peer(config, variables, batch, CPU)
    with torch.inference_mode():
        calls = peer_calls.inference_calls(config, peer, CPU_VARIANTS[0], batch, CANVAS, CPU)
        theirs = calls[ROI_ALIGN]()
        logits, deltas = calls[BOX_HEAD]()
        all_boxes, all_scores, all_labels = calls[DETECTIONS]()
    np.testing.assert_allclose(
        pooled.reshape(-1, *pooled.shape[2:]), theirs.permute(0, 2, 3, 1), atol=1e-5
    )
    flat = outputs.class_logits.reshape(-1, 81)
    np.testing.assert_allclose(flat, logits.roll(-1, dims=1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(outputs.deltas.reshape(-1, 320), deltas[:, 4:], atol=1e-4)
    of_pictures = zip(all_boxes, all_scores, all_labels, strict=True)
    for index, (boxes, scores, labels) in enumerate(of_pictures):
        valid = ours.valid[index]
        assert 10 < int(valid.sum()) == len(boxes)
        np.testing.assert_array_equal(ours.labels[index][valid], labels - 1)
        np.testing.assert_allclose(ours.scores[index][valid], scores, atol=1e-5)
        np.testing.assert_allclose(ours.boxes[index][valid], boxes, atol=1e-3)


@pytest.mark.parametrize(
    ("train", "stages"),
    [
        (False, [FEATURES, NETWORK, POST_PROCESSING, *SECOND_STAGES, WHOLE]),
        (True, [STEP, ROI_ALIGN_GRADIENT]),
    ],
    ids=["inference", "training"],
)
def test_torchvision_s_detector_has_every_stage(
    train: bool, stages: list[str], torchvision_detector: tuple[Config, dict, Batch]
) -> None:
    config, variables, _ = torchvision_detector
    effort = Effort(runs=1, seconds=0.0)
    rows = list(peers.peer_rows(config, variables, 1, CANVAS, train, CPU, effort, {}, CPU_VARIANTS))
    assert [(row["peer"], row.get("stage")) for row in rows] == [
        (f"torchvision {variant.name}", stage) for variant in CPU_VARIANTS for stage in stages
    ], rows


def traced_whole(network: torch.nn.Module) -> torch.nn.Module:
    """Trace a network as `torch.compile` does, without generating code."""
    return torch.compile(network, fullgraph=True, dynamic=False, backend="eager")


@pytest.mark.parametrize("library", ["PyTorch", "torchvision_case", "torchvision_detector"])
def test_a_network_is_compiled_in_one_piece(library: str, request: pytest.FixtureRequest) -> None:
    if library != "PyTorch":
        config, variables, batch = request.getfixturevalue(library)
    else:
        config = CONFIGS["r18_gn"]
        variables, batch = random_variables(config), make_batch(1, CANVAS, boxes=1, seed=0)
    peer = peer_calls.make_peer(config, variables, batch, CPU)
    network = peer_calls.FromPixels(peer.network, config.pixels, torch.float32)
    images = peer_calls.torch_pictures(batch, CPU_VARIANTS[1], CPU)
    torch.compiler.reset()
    torch.testing.assert_close(network(images), traced_whole(network)(images))
    torch.compiler.reset()


def test_networks_are_compiled_for_fixed_shapes_and_without_graph_breaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compile_ = create_autospec(torch.compile)
    monkeypatch.setattr(torch, "compile", compile_)
    network = peer_calls.FromPixels(torch.nn.Identity(), CONFIGS["r18_gn"].pixels, torch.float32)
    modes = []
    for variant in CUDA_VARIANTS:
        compile_.reset_mock()
        prepared = peer_calls.compiled(network, variant, CPU)
        if variant.compile_mode is None:
            assert prepared is network
            compile_.assert_not_called()
        else:
            modes.append(variant.compile_mode)
            compile_.assert_called_once_with(
                network, fullgraph=True, dynamic=False, mode=variant.compile_mode
            )
    assert set(modes) == {"default", "reduce-overhead"}


@pytest.mark.parametrize(
    ("backend", "cuda", "device"),
    [("cpu", True, CPU), ("gpu", True, torch.device("cuda")), ("gpu", False, None)],
)
def test_peers_use_the_device_of_jax(
    backend: str, cuda: bool, device: torch.device | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert peers.peer_device() == device


def test_calls_on_a_gpu_end_when_the_gpu_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a GPU and a clock: work of 5 ms and 7 MB ends in `synchronize`."""
    log: list[str] = []
    now = 0.0

    def synchronize() -> None:
        nonlocal now
        log.append("synchronize")
        now += 5e-3

    monkeypatch.setattr(peers.time, "perf_counter", lambda: now)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: log.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7_000_000)
    cuda = torch.device("cuda")
    effort = Effort(runs=3, seconds=60.0)
    row = peers._stage_columns(NETWORK, lambda: log.append("call"), 2, cuda, effort, {})
    assert row["median_ms"] == pytest.approx(5.0)
    assert row["pictures_per_s"] == pytest.approx(400.0)
    assert row["memory_mb"] == 7.0
    assert row["first_call_s"] == pytest.approx(5e-3)
    timed = ["call", "synchronize"]
    assert log == [*timed, "reset", *timed * (WARM_UP_CALLS + 3)]


def test_a_child_process_measures_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request: dict = {}

    def ask_child(module: str, content: dict, environment: dict[str, str]) -> list[dict]:
        assert module == peers.__name__
        assert environment == {"JAX_PLATFORMS": "cpu"}
        request.update(json.loads(json.dumps(content)))
        return [{"peer": "eager"}]

    measured = create_autospec(peers.peer_rows, return_value=iter([{"peer": "eager"}]))
    monkeypatch.setattr(peers, "ask_child", ask_child)
    monkeypatch.setattr(peers, "load_measured", lambda source: (load_config(source), {}))
    monkeypatch.setattr(peers, "peer_rows", measured)
    effort = Effort(runs=3, seconds=2.0)
    rows = peers.child_rows("rpn_demo", 2, CANVAS, True, effort)
    assert peers._child_rows(request) == rows == [{"peer": "eager"}]
    config, _, *arguments = measured.call_args.args
    assert config == load_config("rpn_demo")
    assert arguments == [2, CANVAS, True, torch.device("cuda"), effort]
    assert measured.call_args.kwargs == {"our_calls": {}, "variants": CUDA_VARIANTS}


def test_both_sets_of_switches_agree_on_tf32() -> None:
    for precision, allowed in (("tf32", True), ("bfloat16", True), ("float32", False)):
        set_precision(precision)
        assert torch.backends.cudnn.allow_tf32 == allowed
        assert torch.backends.cuda.matmul.allow_tf32 == allowed
        assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == allowed
        assert (torch.backends.cuda.matmul.fp32_precision == "tf32") == allowed


def test_jax_arrays_are_accepted_as_weights() -> None:
    config = CONFIGS["r18_gn"]
    variables = jax.tree.map(jax.numpy.asarray, random_variables(config))
    assert peer_calls.make_peer(config, variables, make_batch(1, CANVAS, 1, 0), CPU).propose is None
