"""PyTorch's networks compute what ours do; their rows and ratios."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

from rpn_jax.benchmark import peers
from rpn_jax.benchmark.inputs import make_batch, make_outputs
from rpn_jax.benchmark.stages import NETWORK, network_function
from rpn_jax.benchmark.timing import Effort
from rpn_jax.benchmark.torch_network import TorchRPN
from rpn_jax.benchmark.training import STEP
from rpn_jax.config import BackboneConfig, Config, load_config
from rpn_jax.models import variable_shapes
from rpn_jax.optim import trainable_parameters
from rpn_jax.torch_weights.names import torch_key

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
    ours = network_function(config)(variables, batch.images, batch.image_sizes)
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
    rows = peers.peer_rows(config, variables, 1, CANVAS, train, Effort(runs=1, seconds=0.0))
    assert [row["peer"] for row in rows] == [f"PyTorch {v.name}" for v in peers.CPU_VARIANTS]
    for row in rows:
        assert row["stage"] == (STEP if train else NETWORK)
        assert row["pictures_per_s"] == pytest.approx(1e3 / row["median_ms"])


def test_a_step_moves_the_weights() -> None:
    config = CONFIGS["r18_gn"]
    batch = make_batch(1, CANVAS, boxes=1, seed=0)
    peer = peers.make_peer(config, random_variables(config), batch, CPU)
    before = {name: p.detach().clone() for name, p in peer.network.named_parameters()}
    peers._training_columns(
        config, peer, peers.CPU_VARIANTS[0], batch, CPU, Effort(runs=1, seconds=0.0)
    )
    moved = {n for n, p in peer.network.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(before)


def test_a_variant_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(peers, "_inference_columns", fail)
    config = CONFIGS["r18_gn"]
    rows = peers.peer_rows(
        config, random_variables(config), 1, CANVAS, False, Effort(runs=1, seconds=0.0)
    )
    assert {row["failed"] for row in rows} == {"out of memory"}
    assert peers.with_ratios(rows, [{"stage": NETWORK, "batch": 1, "median_ms": 1.0}]) == rows


def test_ratios_are_to_the_same_stage_and_batch() -> None:
    theirs = {"batch": 2, "stage": NETWORK, "median_ms": 30.0}
    ours = [
        {"batch": 2, "stage": NETWORK, "precision": "float32", "median_ms": 10.0},
        {"batch": 2, "stage": NETWORK, "precision": "bfloat16", "median_ms": 5.0},
        {"batch": 1, "stage": NETWORK, "precision": "float32", "median_ms": 1.0},
        {"batch": 2, "stage": "NMS", "precision": "float32", "median_ms": 1.0},
    ]
    (row,) = peers.with_ratios([theirs], ours)
    assert row == {**theirs, "times_ours_float32": 3.0, "times_ours_bfloat16": 6.0}


@pytest.fixture
def torchvision_peer() -> tuple[Config, dict, peers.Peer]:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    config = load_config(R50)
    variables = random_variables(config)
    batch = make_batch(1, CANVAS, boxes=3, seed=0)
    return config, variables, peers.make_peer(config, variables, batch, CPU)


def test_torchvision_says_what_ours_says(
    torchvision_peer: tuple[Config, dict, peers.Peer],
) -> None:
    config, variables, peer = torchvision_peer
    assert peer.name == "torchvision"
    batch = make_batch(1, CANVAS, boxes=3, seed=0)
    ours = network_function(config)(variables, batch.images, batch.image_sizes)
    network = peers.FromPixels(peer.network.eval(), config.pixels, torch.float32)
    with torch.inference_mode():
        theirs = network(peers.torch_pictures(batch, peers.CPU_VARIANTS[0], CPU))
        assert peer.propose is not None
        (boxes,) = peer.propose(theirs)
    for mine, other in zip(peers.torch_levels(ours, CPU), theirs, strict=True):
        for one, two in zip(mine, other, strict=True):
            assert torch.linalg.norm(one - two) < 1e-5 * torch.linalg.norm(one)
    assert 0 < len(boxes) <= config.proposals.max_proposals
    assert torch.isfinite(peer.loss(theirs))


def test_shapes_alone_make_a_peer_of_jax_arrays() -> None:
    config = CONFIGS["r18_gn"]
    variables = jax.tree.map(jax.numpy.asarray, random_variables(config))
    assert peers.make_peer(config, variables, make_batch(1, CANVAS, 1, 0), CPU).propose is None
