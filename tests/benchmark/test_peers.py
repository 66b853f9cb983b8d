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
from flax.traverse_util import flatten_dict, unflatten_dict

from rpn_jax.benchmark import peers
from rpn_jax.benchmark.inputs import make_batch, make_outputs
from rpn_jax.benchmark.stages import (
    NETWORK,
    POST_PROCESSING,
    WHOLE,
    network_function,
    one_device,
)
from rpn_jax.benchmark.timing import WARM_UP_CALLS, Effort
from rpn_jax.benchmark.torch_network import TorchRPN
from rpn_jax.benchmark.training import STEP
from rpn_jax.config import BackboneConfig, Config, load_config
from rpn_jax.inference.forward import prepare_variables
from rpn_jax.models import RPN, variable_shapes
from rpn_jax.models.rpn.proposals import propose
from rpn_jax.models.rpn.targets import batch_targets
from rpn_jax.ops import grid_anchors
from rpn_jax.structures import Batch
from rpn_jax.training.optim import trainable_parameters
from rpn_jax.weights.torch.names import torch_key

CANVAS = (96, 64)
CPU = torch.device("cpu")


def config_of(name: str, backbone: BackboneConfig | None = None) -> Config:
    config = load_config(name)
    if backbone is None:
        return config
    return replace(config, model=replace(config.model, backbone=backbone))


R50 = "rpn_r50_fpn_1x_coco"
CONFIGS = {
    "r18_gn": config_of("rpn_r18_fpn_gn_small"),
    "r34": config_of(R50, BackboneConfig(depth=34)),
    "r50_caffe": config_of("rpn_r50-caffe_fpn_1x_coco"),
    "r50_caffe_c4": config_of("rpn_r50-caffe-c4_1x_coco"),
    "x50_8x8d": config_of(R50, BackboneConfig(depth=50, groups=8, base_width=8)),
}


def random_variables(config: Config) -> dict:
    """Return random values for every leaf: zeros and ones of new variables can hide mistakes."""
    rng = np.random.default_rng(0)

    def value(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 4:
            return rng.normal(0, np.sqrt(1 / np.prod(shape[:3])), shape)
        return (
            rng.uniform(0.5, 1.5, shape)
            if path[-1] in ("var", "scale")
            else rng.normal(0, 0.1, shape)
        )

    leaves = flatten_dict(variable_shapes(config)).items()
    return unflatten_dict(
        {path: value(path, leaf.shape).astype(np.float32) for path, leaf in leaves}
    )


def torch_network(config: Config, variables: dict) -> TorchRPN:
    network = TorchRPN(config.model)
    weights = peers.state_dict(variables)
    network.load_state_dict({key: torch.tensor(array) for key, array in weights.items()})
    return network


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_plain_network_has_the_same_outputs_as_ours(config: Config) -> None:
    variables = random_variables(config)
    batch = make_batch(2, CANVAS, boxes=1, seed=0)
    weights = prepare_variables(config, variables, one_device())
    ours = network_function(config)(weights, batch.images, batch.image_sizes)
    network = peers.FromPixels(torch_network(config, variables), config.pixels, torch.float32)
    with torch.inference_mode():
        theirs = network(peers.torch_pictures(batch, peers.CPU_VARIANTS[0], CPU))
    for mine, other in zip(peers.torch_levels(ours, CPU), theirs, strict=True):
        for one, two in zip(mine, other, strict=True):
            assert one.shape == two.shape
            assert torch.linalg.norm(one - two) < 1e-5 * torch.linalg.norm(one)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_plain_network_trains_the_same_parameters_as_ours(config: Config) -> None:
    shapes = variable_shapes(config)
    trains = flatten_dict(trainable_parameters(shapes["params"], RPN(config.model).backbone))
    ours = {torch_key(("params", *path)) for path, trained in trains.items() if trained}
    network = TorchRPN(config.model)
    network.train()
    assert {name for name, p in network.named_parameters() if p.requires_grad} == ours
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)


def test_generated_outputs_are_converted_to_pytorch_s_layout() -> None:
    config = CONFIGS["r18_gn"]
    outputs = make_outputs(config, 2, CANVAS, seed=0)
    logits, deltas = peers.torch_levels(outputs, CPU)[0]
    assert float(logits[1, 2, 5, 7]) == float(outputs.objectness[0][1, 5, 7, 2])
    assert float(deltas[1, 2 * 4 + 3, 5, 7]) == float(outputs.deltas[0][1, 5, 7, 2, 3])


def test_pixels_of_both_orders() -> None:
    class Nothing(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images

    pixels = CONFIGS["r50_caffe"].pixels
    assert pixels.order == "bgr"
    rgb = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    seen = peers.FromPixels(Nothing(), pixels, torch.float32)(rgb).flatten().tolist()
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
    rows = list(peers.peer_rows(config, variables, 1, CANVAS, train, CPU, effort, ours))
    assert [row["peer"] for row in rows] == [f"PyTorch {v.name}" for v in peers.CPU_VARIANTS]
    for row in rows:
        assert row["stage"] == stage
        assert row["times_ours_float32"] > 1
        assert row["pictures_per_s"] == pytest.approx(1e3 / row["median_ms"])
        assert row["first_call_s"] > 0
    assert set(seen) == {"float32"}


def test_a_training_step_changes_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS["r18_gn"]
    variables, batch = random_variables(config), make_batch(1, CANVAS, boxes=1, seed=0)
    peer = peers.make_peer(config, variables, batch, CPU)
    monkeypatch.setattr(peers, "make_peer", lambda *_: peer)
    before = {name: p.detach().clone() for name, p in peer.network.named_parameters()}
    peers._training_columns(
        config, variables, peers.CPU_VARIANTS[0], batch, CPU, Effort(runs=1, seconds=0.0), {}
    )
    moved = {n for n, p in peer.network.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(before)


def test_a_failed_variant_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(peers, "_inference_columns", fail)
    config = CONFIGS["r18_gn"]
    rows = peers.peer_rows(
        config, random_variables(config), 1, CANVAS, False, CPU, Effort(runs=1, seconds=0.0), {}
    )
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
    peer = peers.make_peer(config, variables, batch, CPU)
    assert type(peer.network).__name__ == "TorchvisionRPN"
    weights = prepare_variables(config, variables, one_device())
    ours = network_function(config)(weights, batch.images, batch.image_sizes)
    network = peers.FromPixels(peer.network.eval(), config.pixels, torch.float32)
    with torch.inference_mode():
        theirs = network(peers.torch_pictures(batch, peers.CPU_VARIANTS[0], CPU))
    for mine, other in zip(peers.torch_levels(ours, CPU), theirs, strict=True):
        for one, two in zip(mine, other, strict=True):
            assert one.shape == two.shape
            assert torch.linalg.norm(one - two) < 1e-5 * torch.linalg.norm(one)


def test_torchvision_makes_the_same_proposals_as_ours(
    torchvision_case: tuple[Config, dict, Batch],
) -> None:
    config, variables, batch = torchvision_case
    peer = peers.make_peer(config, variables, batch, CPU)
    assert peer.propose is not None
    outputs = make_outputs(config, 2, CANVAS, seed=0)
    ours = propose(config, outputs, batch.image_sizes)
    theirs = peer.propose(peers.torch_levels(outputs, CPU))
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
    network = peers.make_peer(config, variables, batch, CPU).network
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
    peer = peers.make_peer(config, variables, batch, CPU)
    peer.network.train()
    images = peers.torch_pictures(batch, peers.CPU_VARIANTS[0], CPU)
    loss = peer.loss(peers.FromPixels(peer.network, config.pixels, torch.float32)(images))
    loss.backward()
    assert torch.isfinite(loss)
    moved = {
        name
        for name, parameter in peer.network.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.any())
    }
    assert all(p.grad is None or p.grad.isfinite().all() for p in peer.network.parameters())
    trains = flatten_dict(trainable_parameters(variables["params"], RPN(config.model).backbone))
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
    rows = peers.peer_rows(config, variables, 1, CANVAS, train, CPU, effort, {})
    assert [(row["peer"], row["stage"]) for row in rows] == [
        (f"torchvision {variant.name}", stage) for variant in peers.CPU_VARIANTS for stage in stages
    ]


def traced_whole(network: torch.nn.Module) -> torch.nn.Module:
    """Trace a network as `torch.compile` does, without generating code."""
    return torch.compile(network, fullgraph=True, dynamic=False, backend="eager")


@pytest.mark.parametrize("library", ["PyTorch", "torchvision"])
def test_a_network_is_compiled_in_one_piece(library: str, request: pytest.FixtureRequest) -> None:
    if library == "torchvision":
        config, variables, batch = request.getfixturevalue("torchvision_case")
    else:
        config = CONFIGS["r18_gn"]
        variables, batch = random_variables(config), make_batch(1, CANVAS, boxes=1, seed=0)
    peer = peers.make_peer(config, variables, batch, CPU)
    network = peers.FromPixels(peer.network, config.pixels, torch.float32)
    images = peers.torch_pictures(batch, peers.CPU_VARIANTS[1], CPU)
    torch.compiler.reset()
    for one, two in zip(network(images), traced_whole(network)(images), strict=True):
        torch.testing.assert_close(one, two)
    torch.compiler.reset()


def test_networks_are_compiled_for_fixed_shapes_and_without_graph_breaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compile_ = create_autospec(torch.compile)
    monkeypatch.setattr(torch, "compile", compile_)
    network = peers.FromPixels(torch.nn.Identity(), CONFIGS["r18_gn"].pixels, torch.float32)
    modes = []
    for variant in peers.CUDA_VARIANTS:
        compile_.reset_mock()
        prepared = peers._prepared(network, variant, CPU)
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
    monkeypatch.setattr(peers, "peer_rows", measured)
    effort = Effort(runs=3, seconds=2.0)
    rows = peers.child_rows("rpn_demo", 2, CANVAS, True, effort)
    assert peers._child_rows(request) == rows == [{"peer": "eager"}]
    config, _, *arguments = measured.call_args.args
    assert config == load_config("rpn_demo")
    assert arguments == [2, CANVAS, True, torch.device("cuda"), effort]
    assert measured.call_args.kwargs == {"our_calls": {}}


def test_both_sets_of_switches_agree_on_tf32() -> None:
    for precision, allowed in (("tf32", True), ("bfloat16", True), ("float32", False)):
        peers.set_precision(precision)
        assert torch.backends.cudnn.allow_tf32 == allowed
        assert torch.backends.cuda.matmul.allow_tf32 == allowed
        assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == allowed
        assert (torch.backends.cuda.matmul.fp32_precision == "tf32") == allowed


def test_jax_arrays_are_accepted_as_weights() -> None:
    config = CONFIGS["r18_gn"]
    variables = jax.tree.map(jax.numpy.asarray, random_variables(config))
    assert peers.make_peer(config, variables, make_batch(1, CANVAS, 1, 0), CPU).propose is None
