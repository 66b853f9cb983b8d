"""Measure PyTorch: the same work and weights on the same device, in the same run.

ResNet-50-FPN is torchvision's network, if torchvision is installed. Every other network, and every
network on a machine without torchvision, is plain PyTorch with MMDetection's layers. It has no
post-processing, and a simple loss that reads all outputs.

PyTorch gets its best settings: warm-up, cuDNN's autotuning, channels-last memory where it helps,
bfloat16 weights for inference and bfloat16 autocast for training. `torch.compile` compiles the
network. torchvision's post-processing and losses stay eager, because their shapes depend on the
data.

On a GPU PyTorch runs in a child process, before JAX is measured: JAX keeps the memory that it has
used once. Both are timed by the wall clock, from the call until the results exist.
"""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rpn_jax.benchmark.figures import Row, one_line, timing_columns
from rpn_jax.benchmark.inputs import Canvas, make_batch, make_outputs, output_shapes
from rpn_jax.benchmark.models import load_measured
from rpn_jax.benchmark.process import answer, ask_child
from rpn_jax.benchmark.stages import NETWORK, POST_PROCESSING, WHOLE
from rpn_jax.benchmark.timing import Call, Effort, median_ratio, repeat, seconds_until_ready
from rpn_jax.benchmark.torch_network import Level, TorchRPN
from rpn_jax.benchmark.training import BOXES, STEP
from rpn_jax.config import Config, PixelConfig, Precision, load_config, with_precision
from rpn_jax.ops import grid_anchors
from rpn_jax.structures import Batch, RPNOutputs, Variables
from rpn_jax.weights.torch.conversion import state_dict

if TYPE_CHECKING:
    OurCalls = Mapping[str, Mapping[Precision, Call]]
    """Calls of this package, by stage and precision."""

STEP_LEARNING_RATE = 1e-5
"""Low, because random weights would diverge at the usual rate."""

CPU = torch.device("cpu")

CompileMode = Literal["default", "reduce-overhead"]
"""Modes of `torch.compile`. "reduce-overhead" uses CUDA graphs."""


@dataclass(frozen=True)
class Variant:
    """Settings to run PyTorch with."""

    name: str
    precision: Precision
    channels_last: bool
    compile_mode: CompileMode | None = None
    """None runs the network eagerly."""


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
    """A PyTorch network, and the functions of its outputs, for one batch."""

    network: nn.Module
    """Maps normalised pictures [B, 3, H, W] to levels."""
    propose: Callable[[list[Level]], Any] | None
    """Maps levels to boxes. None if the peer has no post-processing."""
    loss: Callable[[list[Level]], Tensor]


class FromPixels(nn.Module):
    """Normalise uint8 RGB pictures [B, 3, H, W] and apply a network to them."""

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
    """Yield the rows of each variant for ``device``: stages of inference, or the training step.

    The column ``times_ours_P`` is the time of PyTorch divided by the time of our call of the same
    stage with precision P, from `timing.median_ratio`. A variant that fails (out of memory, no
    compiler) has a row with ``failed``.
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
        except Exception as error:  # a compiler can raise anything
            measured = [{"failed": one_line(error)}]
        _release_memory(variant, device)
        yield from ({"peer": name, **columns} for columns in measured)


def child_rows(
    config_name: str, batch_size: int, canvas: Canvas, train: bool, effort: Effort
) -> list[Row]:
    """Measure `peer_rows` on the GPU in a new process. There JAX only makes inputs, on the CPU.

    The rows have no ``times_ours_P``.

    Raises:
      ChildError: the process failed.
    """
    request = {
        "config": config_name,
        "batch_size": batch_size,
        "canvas": canvas,
        "train": train,
        "effort": asdict(effort),
    }
    return ask_child(__name__, request, {"JAX_PLATFORMS": "cpu"})


def peer_device() -> torch.device | None:
    """Return the device that JAX computes on as a PyTorch device, None if PyTorch cannot use it."""
    if jax.default_backend() == "cpu":
        return torch.device("cpu")
    return torch.device("cuda") if torch.cuda.is_available() else None


def is_torchvision_peer(config: Config) -> bool:
    """Return whether torchvision is installed and has this network, R50-FPN."""
    original = load_config("rpn_r50_fpn_1x_coco").model
    same = with_precision(config, original.precision).model == original
    return same and importlib.util.find_spec("torchvision") is not None


def make_peer(config: Config, variables: Variables, batch: Batch, device: torch.device) -> Peer:
    """Return the peer of a config with these weights. The batch's pictures must fill the canvas."""
    weights = {key: torch.tensor(array) for key, array in state_dict(variables).items()}
    if is_torchvision_peer(config):
        return _torchvision_peer(config, weights, batch, device)
    network = TorchRPN(config.model)
    network.load_state_dict(weights)
    return Peer(network.to(device), propose=None, loss=stand_in_loss)


def stand_in_loss(levels: list[Level]) -> Tensor:
    """Return the cross-entropy of all logits plus the L1 of all deltas. It does no matching."""
    logits = torch.cat([objectness.float().flatten() for objectness, _ in levels])
    deltas = torch.cat([deltas.float().flatten() for _, deltas in levels])
    cross_entropy = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
    return cross_entropy + deltas.abs().mean()


def set_precision(precision: Precision) -> None:
    """Allow or forbid TF32 for float32 operations in PyTorch.

    PyTorch has two sets of switches. This uses the older set, which also sets the newer one
    (``fp32_precision``). `torch.compile` of PyTorch 2.9 and 2.10 fails if only the newer is set.
    """
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "float32"


def torch_pictures(batch: Batch, variant: Variant, device: torch.device) -> Tensor:
    """Return the batch's pictures on the device, uint8 [B, 3, H, W]."""
    images = torch.tensor(np.asarray(batch.images)).permute(0, 3, 1, 2).to(device)
    return images.contiguous(memory_format=_memory_format(variant))


def torch_levels(outputs: RPNOutputs, device: torch.device) -> list[Level]:
    """Return head outputs of this package in PyTorch's layout."""
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
    """Measure the network and, if the peer has it, post-processing and all stages together."""
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
    """Measure a training step: forward pass, loss, backward pass, SGD."""
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
    # fullgraph: without it parts may stay eager. dynamic=False: otherwise a second batch size gets
    # slower code that works for any size.
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
    """Time a call. ``first_call_s`` includes compiling and cuDNN's autotuning."""
    on_cuda = device.type == "cuda"
    seconds_of = _synchronized_seconds if on_cuda else _wall_seconds
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
    """Free the memory of a variant, including its compiled programs, for the next measurement."""
    if variant.compile_mode is not None:
        torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _wall_seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _synchronized_seconds(call: Callable[[], Any]) -> float:
    """Return the wall-clock seconds of a call until a GPU has finished its work."""
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _child_rows(request: dict[str, Any]) -> list[Row]:
    config, variables = load_measured(request["config"])
    height, width = request["canvas"]
    return list(
        peer_rows(
            config,
            variables,
            request["batch_size"],
            (height, width),
            request["train"],
            torch.device("cuda"),
            Effort(**request["effort"]),
            our_calls={},
        )
    )


if __name__ == "__main__":
    answer(_child_rows)
