"""PyTorch beside this package: the same work and weights on the same device, in the same run.

ResNet-50-FPN is torchvision's where that is installed; any other network, and any on a machine
without torchvision, is written out in plain PyTorch as MMDetection has it, without post-processing
and with a stand-in for the loss. Peers are run as well as they can be: warm, cuDNN choosing its
algorithms, channels last where that helps, weights in bfloat16 for inference, and autocast to
bfloat16 for training. Compiled is the network; torchvision's post-processing and losses have shapes
that depend on the data, and stay eager.
"""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rpn_jax.benchmark.figures import Row, one_line, timing_columns
from rpn_jax.benchmark.inputs import Canvas, make_batch, make_outputs, output_shapes
from rpn_jax.benchmark.stages import NETWORK, POST_PROCESSING, WHOLE
from rpn_jax.benchmark.timing import Call, Effort, median_ratio, repeat, seconds_until_ready
from rpn_jax.benchmark.torch_network import Level, TorchRPN
from rpn_jax.benchmark.training import BOXES, STEP
from rpn_jax.config import Config, PixelConfig, load_config, replace
from rpn_jax.ops import grid_anchors
from rpn_jax.structures import Batch, RPNOutputs, Variables
from rpn_jax.weights.torch.conversion import state_dict

if TYPE_CHECKING:
    from rpn_jax.ops.convolution import Precision

    OurCalls = Mapping[str, Mapping[Precision, Call]]
    """Calls of this package by stage and precision."""

STEP_LEARNING_RATE = 1e-5
"""So low that random weights do not diverge."""

CompileMode = Literal["default", "reduce-overhead"]
"""Of `torch.compile`; the second replays CUDA graphs."""


@dataclass(frozen=True)
class Variant:
    """A way to run PyTorch."""

    name: str
    precision: Precision
    channels_last: bool
    compile_mode: CompileMode | None = None
    """None runs it eagerly."""


CPU_VARIANTS = (
    Variant("eager float32", "float32", channels_last=False),
    Variant("eager float32 channels_last", "float32", channels_last=True),
)
CUDA_VARIANTS = (
    Variant("eager float32", "float32", channels_last=False),
    Variant("eager tf32", "tf32", channels_last=False),
    Variant("eager bfloat16 channels_last", "bfloat16", channels_last=True),
    Variant("compile float32", "float32", channels_last=False, compile_mode="default"),
    Variant("compile tf32 channels_last", "tf32", channels_last=True, compile_mode="default"),
    Variant(
        "compile bfloat16 channels_last", "bfloat16", channels_last=True, compile_mode="default"
    ),
    Variant(
        "compile bfloat16 channels_last CUDA graphs",
        "bfloat16",
        channels_last=True,
        compile_mode="reduce-overhead",
    ),
)


@dataclass(frozen=True)
class Peer:
    """A network in PyTorch and what follows it, for one batch."""

    network: nn.Module
    """Normalised pictures [B, 3, H, W] to levels."""
    propose: Callable[[list[Level]], Any] | None
    """Levels to boxes, where the peer has that."""
    loss: Callable[[list[Level]], Tensor]


class FromPixels(nn.Module):
    """A network with normalisation in front: uint8 RGB [B, 3, H, W] to levels."""

    def __init__(self, network: nn.Module, pixels: PixelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.reverse = pixels.order == "bgr"
        self.dtype = dtype
        self.register_buffer("mean", torch.tensor(pixels.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(pixels.std)[:, None, None])

    def forward(self, images: Tensor) -> list[Level]:
        channels = images.flip(1) if self.reverse else images
        return self.network(((channels - self.mean) / self.std).to(self.dtype))


def peer_rows(
    config: Config,
    variables: Variables,
    batch_size: int,
    canvas: Canvas,
    train: bool,
    device: torch.device,
    effort: Effort,
    our_calls: OurCalls,
) -> Iterator[Row]:
    """Rows of each variant that ``device`` can run: stages of inference, or the training step.

    ``times_ours_P`` of a row is its time over that of our call of its stage with precision P
    (`timing.median_ratio`). A variant that fails (memory, a compiler that is missing) has a row
    that says so.
    """
    torch.backends.cudnn.benchmark = True
    library = "torchvision" if is_torchvision_peer(config) else "PyTorch"
    batch = make_batch(batch_size, canvas, BOXES, seed=0)
    outputs = make_outputs(config, batch_size, canvas, seed=0)
    for variant in CUDA_VARIANTS if device.type == "cuda" else CPU_VARIANTS:
        name = f"{library} {variant.name}"
        set_precision(variant.precision)
        try:
            if train:
                measured = [
                    _training_columns(config, variables, variant, batch, device, effort, our_calls)
                ]
            else:
                measured = _inference_columns(
                    config, variables, variant, batch, outputs, device, effort, our_calls
                )
        except Exception as error:  # a compiler can fail in any way; the other figures stay
            measured = [{"failed": one_line(error)}]
        _release_memory(variant, device)
        yield from ({"peer": name, **columns} for columns in measured)


def peer_device() -> torch.device | None:
    """The device that JAX computes on, as PyTorch's; None where PyTorch cannot use it."""
    if jax.default_backend() == "cpu":
        return torch.device("cpu")
    return torch.device("cuda") if torch.cuda.is_available() else None


def is_torchvision_peer(config: Config) -> bool:
    """Whether torchvision is there and has this network, that of ``rpn_r50_fpn_1x_coco``."""
    original = load_config("rpn_r50_fpn_1x_coco").model
    same = replace(config.model, precision=original.precision) == original
    return same and importlib.util.find_spec("torchvision") is not None


def make_peer(config: Config, variables: Variables, batch: Batch, device: torch.device) -> Peer:
    """The peer of a config with these weights, for a batch whose pictures fill their canvas."""
    weights = {key: torch.tensor(array) for key, array in state_dict(variables).items()}
    if is_torchvision_peer(config):
        return _torchvision_peer(config, weights, batch, device)
    network = TorchRPN(config.model)
    network.load_state_dict(weights)
    return Peer(network.to(device), propose=None, loss=stand_in_loss)


def stand_in_loss(levels: list[Level]) -> Tensor:
    """Cross-entropy of every logit and L1 of every delta: as much to read, nothing to match."""
    logits = torch.cat([objectness.float().flatten() for objectness, _ in levels])
    deltas = torch.cat([deltas.float().flatten() for _, deltas in levels])
    cross_entropy = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
    return cross_entropy + deltas.abs().mean()


def set_precision(precision: Precision) -> None:
    """Let PyTorch use TF32 for float32, or forbid it.

    By the older of its two sets of switches: they set the newer ones (``fp32_precision``) too,
    while `torch.compile` of PyTorch 2.9 and 2.10 fails where only the newer ones are set.
    """
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "float32"


def torch_pictures(batch: Batch, variant: Variant, device: torch.device) -> Tensor:
    """The batch's pictures, uint8 [B, 3, H, W] on the device."""
    images = torch.tensor(np.asarray(batch.images)).permute(0, 3, 1, 2).to(device)
    return images.contiguous(memory_format=_memory_format(variant))


def torch_levels(outputs: RPNOutputs, device: torch.device) -> list[Level]:
    """Head outputs of this package in PyTorch's layout."""
    levels = []
    for objectness, deltas in zip(outputs.objectness, outputs.deltas, strict=True):
        logits = torch.tensor(np.asarray(objectness)).permute(0, 3, 1, 2)
        flat = np.asarray(deltas).reshape(*deltas.shape[:3], -1)
        levels.append((logits.to(device), torch.tensor(flat).permute(0, 3, 1, 2).to(device)))
    return levels


def _torchvision_peer(
    config: Config, weights: dict[str, Tensor], batch: Batch, device: torch.device
) -> Peer:
    from rpn_jax.benchmark.torchvision_rpn import TorchvisionRPN

    sizes = [(int(height), int(width)) for height, width in np.asarray(batch.image_sizes)]
    network = TorchvisionRPN(config, sizes)
    network.load(weights)
    network.to(device)
    shapes = output_shapes(config, len(sizes), sizes[0])
    levels = grid_anchors(shapes.level_shapes, config.model.rpn.anchors)
    anchors = [torch.tensor(np.concatenate(levels)).to(device)] * len(sizes)
    boxes = [torch.tensor(np.asarray(of_picture)).to(device) for of_picture in batch.boxes_xyxy]
    return Peer(
        network,
        propose=lambda levels: network.propose(levels, anchors),
        loss=lambda levels: network.loss(levels, anchors, boxes),
    )


def _inference_columns(
    config: Config,
    variables: Variables,
    variant: Variant,
    batch: Batch,
    outputs: RPNOutputs,
    device: torch.device,
    effort: Effort,
    our_calls: OurCalls,
) -> list[Row]:
    """The network, and where the peer proposes, post-processing and the whole."""
    dtype = torch.bfloat16 if variant.precision == "bfloat16" else torch.float32
    peer = make_peer(config, variables, batch, device)
    peer.network.eval()
    network = _prepared(FromPixels(peer.network.to(dtype), config.pixels, dtype), variant, device)
    images = torch_pictures(batch, variant, device)
    made = torch_levels(outputs, device)
    calls: dict[str, Callable[[], Any]] = {NETWORK: lambda: network(images)}
    propose = peer.propose
    if propose is not None:
        calls[POST_PROCESSING] = lambda: propose(made)
        calls[WHOLE] = lambda: propose(network(images))
    with torch.inference_mode():
        return [
            _stage_columns(stage, call, len(images), device, effort, our_calls)
            for stage, call in calls.items()
        ]


def _training_columns(
    config: Config,
    variables: Variables,
    variant: Variant,
    batch: Batch,
    device: torch.device,
    effort: Effort,
    our_calls: OurCalls,
) -> Row:
    """A step: forward, loss, backward, SGD."""
    peer = make_peer(config, variables, batch, device)
    peer.network.train()
    network = _prepared(FromPixels(peer.network, config.pixels, torch.float32), variant, device)
    images = torch_pictures(batch, variant, device)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        trained, STEP_LEARNING_RATE, config.optim.momentum, weight_decay=config.optim.weight_decay
    )
    in_bfloat16 = variant.precision == "bfloat16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
            levels = network(images)
        peer.loss(levels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return _stage_columns(STEP, step, len(images), device, effort, our_calls)


def _prepared(network: FromPixels, variant: Variant, device: torch.device) -> nn.Module:
    network = network.to(device=device, memory_format=_memory_format(variant))
    if variant.compile_mode is None:
        return network
    # Whole and for these shapes only: otherwise parts may stay eager, and a second batch size
    # would get slower code for any size.
    return torch.compile(network, fullgraph=True, dynamic=False, mode=variant.compile_mode)


def _memory_format(variant: Variant) -> torch.memory_format:
    return torch.channels_last if variant.channels_last else torch.contiguous_format


def _stage_columns(
    stage: str,
    call: Callable[[], Any],
    pictures: int,
    device: torch.device,
    effort: Effort,
    our_calls: OurCalls,
) -> Row:
    """Times of a call; ``first_call_s`` has compiling and the choice of algorithms in it."""
    on_cuda = device.type == "cuda"
    seconds_of = _event_seconds if on_cuda else _wall_seconds
    first_call = _wall_seconds(lambda: seconds_of(call))
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    columns = timing_columns(repeat(lambda: seconds_of(call), effort), pictures)
    columns["first_call_s"] = first_call
    if on_cuda:
        columns["memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
    for precision, our_call in our_calls.get(stage, {}).items():
        columns[f"times_ours_{precision}"] = median_ratio(
            lambda: seconds_of(call), partial(seconds_until_ready, our_call), effort
        )
    return {"stage": stage, **columns}


def _release_memory(variant: Variant, device: torch.device) -> None:
    """Give memory back to whoever is measured next, compiled programs and what they hold too."""
    if variant.compile_mode is not None:
        torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _wall_seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _event_seconds(call: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
