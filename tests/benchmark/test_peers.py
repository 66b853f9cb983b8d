"""PyTorch's networks compute what ours do; their rows and ratios."""

from __future__ import annotations

from dataclasses import replace
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
from rpn_jax.models import variable_shapes
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
    """Every leaf random: fresh variables have zeros and ones that hide mistakes."""
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
def test_the_plain_network_says_what_ours_says(config: Config) -> None:
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
def test_the_plain_network_trains_what_ours_trains(config: Config) -> None:
    shapes = variable_shapes(config)
    trains = flatten_dict(trainable_parameters(shapes["params"], config.model.backbone))
    ours = {torch_key(("params", *path)) for path, trained in trains.items() if trained}
    network = TorchRPN(config.model)
    network.train()
    assert {name for name, p in network.named_parameters() if p.requires_grad} == ours
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)


def test_made_outputs_keep_their_places() -> None:
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


def test_a_step_moves_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_variant_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
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
    """torchvision's network with few candidates, so that both of its limits count."""
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    config = load_config(R50)
    proposals = replace(config.rpn_proposals, nms_pre=200, max_proposals=150)
    config = replace(config, rpn_proposals=proposals)
    return config, random_variables(config), make_batch(2, CANVAS, boxes=3, seed=0)


def test_torchvision_says_what_ours_says(torchvision_case: tuple[Config, dict, Batch]) -> None:
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


def test_torchvision_proposes_what_ours_proposes(
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


def test_torchvision_matches_what_ours_matches(
    torchvision_case: tuple[Config, dict, Batch],
) -> None:
    config, variables, batch = torchvision_case
    # torchvision gives a box its best anchors whatever their IoU.
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


def test_torchvision_trains_what_ours_trains(torchvision_case: tuple[Config, dict, Batch]) -> None:
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
    trains = flatten_dict(trainable_parameters(variables["params"], config.model.backbone))
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
    """As `torch.compile` sees it, without the code it makes."""
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


def test_compiling_is_for_these_shapes_and_without_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_peers_run_where_jax_runs(
    backend: str, cuda: bool, device: torch.device | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert peers.peer_device() == device


def test_calls_on_a_gpu_are_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's clock and memory, played: each call takes 5 ms and 7 MB, the first one more."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("synchronize")

        def elapsed_time(self, end: Event) -> float:
            return 5.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: log.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7_000_000)
    cuda = torch.device("cuda")
    effort = Effort(runs=3, seconds=60.0)
    row = peers._stage_columns(NETWORK, lambda: log.append("call"), 2, cuda, effort, {})
    assert row["median_ms"] == pytest.approx(5.0)
    assert row["pictures_per_s"] == pytest.approx(400.0)
    assert row["memory_mb"] == 7.0
    assert row["first_call_s"] > 0
    timed = ["record", "call", "record", "synchronize"]
    assert log == [*timed, "reset", *timed * (WARM_UP_CALLS + 3)]


def test_both_sets_of_switches_agree_on_tf32() -> None:
    for precision, allowed in (("tf32", True), ("bfloat16", True), ("float32", False)):
        peers.set_precision(precision)
        assert torch.backends.cudnn.allow_tf32 == allowed
        assert torch.backends.cuda.matmul.allow_tf32 == allowed
        assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == allowed
        assert (torch.backends.cuda.matmul.fp32_precision == "tf32") == allowed


def test_shapes_alone_make_a_peer_of_jax_arrays() -> None:
    config = CONFIGS["r18_gn"]
    variables = jax.tree.map(jax.numpy.asarray, random_variables(config))
    assert peers.make_peer(config, variables, make_batch(1, CANVAS, 1, 0), CPU).propose is None
