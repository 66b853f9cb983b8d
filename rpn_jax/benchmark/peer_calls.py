"""The work of a PyTorch peer: its network with our weights, and a call for each stage."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rpn_jax.benchmark.inputs import Canvas, make_outputs, output_shapes
from rpn_jax.benchmark.second_stage import (
    BOX_HEAD,
    DETECTIONS,
    ROI_ALIGN,
    ROI_ALIGN_GRADIENT,
    SECOND_STAGE,
    SecondStageInputs,
    roi_align_function,
    second_stage_inputs,
)
from rpn_jax.benchmark.stages import FEATURES, NETWORK, POST_PROCESSING, WHOLE
from rpn_jax.benchmark.torch_network import Level, TorchDetector
from rpn_jax.benchmark.torch_variants import Variant
from rpn_jax.benchmark.training import STEP
from rpn_jax.config import Config, PixelConfig, load_config, with_precision
from rpn_jax.models.backbone import check_resnet
from rpn_jax.ops import grid_anchors
from rpn_jax.structures import Batch, RPNOutputs, Variables
from rpn_jax.weights.torch.conversion import state_dict

Function = TypeVar("Function", bound=Callable[..., Any])

Calls = dict[str, Callable[[], Any]]
"""Work of PyTorch, by the name of its stage."""

BoxOutputs = tuple[Tensor, Tensor]
"""Logits [R, C + 1] and deltas of the second stage."""

STEP_LEARNING_RATE = 1e-5
"""Low, because random weights would diverge at the usual rate."""

TORCHVISION_CONFIGS = ("rpn_r50_fpn_1x_coco", "faster-rcnn_r50_fpn_1x_coco")
"""Configs whose network torchvision has."""


@dataclass(frozen=True)
class SecondStage:
    """torchvision's operations of the second stage. Boxes are a list with one tensor a picture."""

    pool: Callable[[list[Tensor], list[Tensor]], Tensor]
    """Maps levels and boxes to pooled features [R, C, P, P]."""
    detect: Callable[[Tensor, Tensor, list[Tensor]], Any]
    """Maps logits, deltas and boxes to detections."""


@dataclass(frozen=True)
class Peer:
    """A PyTorch network, and the functions of its outputs, for one batch."""

    network: nn.Module
    """Maps normalised pictures [B, 3, H, W] to features and to the outputs of the RPN head. Its
    method ``features`` returns only the former."""
    loss: Callable[[list[Tensor], list[Level]], Tensor]
    """Maps what the network returns to the loss."""
    propose: Callable[[list[Level]], list[Tensor]] | None = None
    """Maps outputs of the RPN head to boxes. None if the peer has no post-processing."""
    box_head: Callable[[Tensor], BoxOutputs] | None = None
    """Maps pooled features to logits and deltas. None if there is no second stage."""
    second_stage: SecondStage | None = None
    """None if there is no second stage, or if only torchvision has the rest of it."""


class Features(nn.Module):
    """The part of a network up to the inputs of its heads."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.network.features(images)


class FromPixels(nn.Module):
    """Normalise uint8 RGB pictures [B, 3, H, W] and apply a network to them."""

    def __init__(self, network: nn.Module, pixels: PixelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.reverse = pixels.order == "bgr"
        self.dtype = dtype
        self.register_buffer("mean", torch.tensor(pixels.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(pixels.std)[:, None, None])

    def forward(self, images: Tensor) -> Any:
        channels = images.flip(1) if self.reverse else images
        return self.network(((channels - self.mean) / self.std).to(self.dtype))


def is_torchvision_peer(config: Config) -> bool:
    """Return whether torchvision is installed and has this network, R50-FPN."""
    if importlib.util.find_spec("torchvision") is None:
        return False
    in_float32 = with_precision(config, "float32").model
    return in_float32 in [load_config(name).model for name in TORCHVISION_CONFIGS]


def make_peer(config: Config, variables: Variables, batch: Batch, device: torch.device) -> Peer:
    """Return the peer of a config with these weights. The batch's pictures must fill the canvas."""
    check_resnet(config, "PyTorch")
    weights = {key: torch.tensor(array) for key, array in state_dict(variables).items()}
    if is_torchvision_peer(config):
        return _torchvision_peer(config, weights, batch, device)
    network = TorchDetector(config.model)
    network.load_state_dict(weights)
    network.to(device)
    if config.model.roi is None:
        return Peer(network, loss=lambda _, outputs: stand_in_loss(outputs))
    _, height, width, _ = batch.images.shape
    made = second_stage_inputs(config, len(batch.images), (height, width))
    pooled = _pooled(config, made, config.roi_loss.samples_per_image or None, device)
    return Peer(
        network,
        loss=lambda _, outputs: stand_in_loss([*outputs, network.roi_head(pooled)]),
        box_head=network.roi_head,
    )


def stand_in_loss(outputs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the cross-entropy of all logits plus the L1 of all deltas. It does no matching.

    The outputs are logits and deltas: of each level, or of the second stage's boxes.
    """
    logits = torch.cat([logits.float().flatten() for logits, _ in outputs])
    deltas = torch.cat([deltas.float().flatten() for _, deltas in outputs])
    cross_entropy = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
    return cross_entropy + deltas.abs().mean()


def inference_calls(
    config: Config, peer: Peer, variant: Variant, batch: Batch, canvas: Canvas, device: torch.device
) -> Calls:
    """Return the stages that the peer has, in the order of `rpn_jax.benchmark.stages`."""
    dtype = variant.dtype
    peer.network.eval().to(dtype)
    images = torch_pictures(batch, variant, device)

    def prepared(network: nn.Module) -> nn.Module:
        return compiled(FromPixels(network, config.pixels, dtype), variant, device)

    network = prepared(peer.network)
    calls: Calls = {NETWORK: lambda: network(images)}
    propose = peer.propose
    if propose is not None:
        made = torch_levels(make_outputs(config, len(images), canvas, seed=0), device)
        calls[POST_PROCESSING] = lambda: propose(made)
    if peer.box_head is None:
        if propose is not None:
            calls[WHOLE] = lambda: propose(network(images)[1])
        return calls
    features = prepared(Features(peer.network))
    return {
        FEATURES: lambda: features(images),
        **calls,
        **_second_stage_calls(config, peer, peer.box_head, network, images, variant, canvas),
    }


def training_calls(
    config: Config, peer: Peer, variant: Variant, batch: Batch, canvas: Canvas, device: torch.device
) -> Calls:
    """Return a training step, and RoIAlign with its gradient if the peer has it.

    A step is: forward pass, loss, backward pass, SGD.
    """
    peer.network.train()
    network = compiled(FromPixels(peer.network, config.pixels, torch.float32), variant, device)
    images = torch_pictures(batch, variant, device)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        trained, STEP_LEARNING_RATE, config.optim.momentum, weight_decay=config.optim.weight_decay
    )
    in_bfloat16 = variant.precision == "bfloat16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
            loss = peer.loss(*network(images))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    calls: Calls = {STEP: step}
    if peer.second_stage is not None:
        calls[ROI_ALIGN_GRADIENT] = _roi_align_gradient(
            config, peer.second_stage, len(images), canvas, device
        )
    return calls


def compiled(network: nn.Module, variant: Variant, device: torch.device) -> nn.Module:
    """Return a network on the device, compiled if the variant asks for it."""
    return _compiled(network.to(device=device, memory_format=variant.memory_format), variant)


def torch_pictures(batch: Batch, variant: Variant, device: torch.device) -> Tensor:
    """Return the batch's pictures on the device, uint8 [B, 3, H, W]."""
    images = torch.tensor(np.asarray(batch.images)).permute(0, 3, 1, 2).to(device)
    return images.contiguous(memory_format=variant.memory_format)


def torch_levels(outputs: RPNOutputs, device: torch.device) -> list[Level]:
    """Return head outputs of this package in PyTorch's layout."""
    levels = []
    for objectness, deltas in zip(outputs.objectness, outputs.deltas, strict=True):
        logits = torch.tensor(np.asarray(objectness)).permute(0, 3, 1, 2)
        flat = np.asarray(deltas).reshape(*deltas.shape[:3], -1)
        levels.append((logits.to(device), torch.tensor(flat).permute(0, 3, 1, 2).to(device)))
    return levels


def _compiled(function: Function, variant: Variant) -> Function:
    if variant.compile_mode is None:
        return function
    # fullgraph: without it parts may stay eager. dynamic=False: otherwise a second batch size gets
    # slower code that works for any size.
    return torch.compile(function, fullgraph=True, dynamic=False, mode=variant.compile_mode)


def _torchvision_peer(
    config: Config, weights: dict[str, Tensor], batch: Batch, device: torch.device
) -> Peer:
    from rpn_jax.benchmark.torchvision_detector import TorchvisionFasterRCNN
    from rpn_jax.benchmark.torchvision_rpn import TorchvisionRPN

    sizes = [(int(height), int(width)) for height, width in np.asarray(batch.image_sizes)]
    shapes = output_shapes(config, len(sizes), sizes[0])
    levels = grid_anchors(shapes.level_shapes, config.model.rpn.anchors)
    anchors = [torch.tensor(np.concatenate(levels)).to(device)] * len(sizes)
    boxes = [torch.tensor(np.asarray(of_picture)).to(device) for of_picture in batch.boxes_xyxy]
    if config.model.roi is None:
        rpn = TorchvisionRPN(config, sizes)
        rpn.load(weights)
        return Peer(
            rpn.to(device),
            loss=lambda _, outputs: rpn.loss(outputs, anchors, boxes),
            propose=lambda outputs: rpn.propose(outputs, anchors),
        )
    detector = TorchvisionFasterRCNN(config, sizes)
    detector.load(weights)

    def loss(levels: list[Tensor], outputs: list[Level]) -> Tensor:
        with torch.no_grad():
            proposals = detector.propose(outputs, anchors)
        first_stage = detector.loss(outputs, anchors, boxes)
        return first_stage + detector.second_stage_loss(levels, proposals, boxes)

    return Peer(
        detector.to(device),
        loss=loss,
        propose=lambda outputs: detector.propose(outputs, anchors),
        box_head=detector.box_head,
        second_stage=SecondStage(detector.pool, detector.detect),
    )


def _second_stage_calls(
    config: Config,
    peer: Peer,
    box_head: Callable[[Tensor], BoxOutputs],
    network: nn.Module,
    images: Tensor,
    variant: Variant,
    canvas: Canvas,
) -> Calls:
    """Return the stages of the second stage with generated inputs, and all stages together."""
    device, box_head = images.device, _compiled(box_head, variant)
    made = second_stage_inputs(config, len(images), canvas)
    pooled = _pooled(config, made, None, device).to(variant.dtype)
    head: Calls = {BOX_HEAD: lambda: box_head(pooled)}
    if peer.second_stage is None or peer.propose is None:
        return head
    pool, detect, propose = peer.second_stage.pool, peer.second_stage.detect, peer.propose
    levels = [level.to(variant.dtype) for level in _made_levels(made, device)]
    boxes = _made_boxes(made, None, device)
    logits, deltas = _made_outputs(made, device)

    def whole() -> Any:
        features, outputs = network(images)
        proposals = propose(outputs)
        return detect(*box_head(pool(features, proposals)), proposals)

    return {
        ROI_ALIGN: lambda: pool(levels, boxes),
        **head,
        DETECTIONS: lambda: detect(logits, deltas, boxes),
        SECOND_STAGE: lambda: detect(*box_head(pool(levels, boxes)), boxes),
        WHOLE: whole,
    }


def _roi_align_gradient(
    config: Config, second_stage: SecondStage, count: int, canvas: Canvas, device: torch.device
) -> Callable[[], Any]:
    made = second_stage_inputs(config, count, canvas)
    boxes = _made_boxes(made, config.roi_loss.samples_per_image or None, device)
    levels = [level.requires_grad_() for level in _made_levels(made, device)]
    cotangent = second_stage.pool(levels, boxes).detach()

    def value_and_gradient() -> Any:
        pooled = second_stage.pool(levels, boxes)
        return torch.autograd.grad(pooled, levels, cotangent, allow_unused=True)

    return value_and_gradient


def _made_levels(made: SecondStageInputs, device: torch.device) -> list[Tensor]:
    """Return generated features in PyTorch's layout, float32 [B, C, Hl, Wl]."""
    return [_channels_first(level, device) for level in made.levels]


def _made_boxes(made: SecondStageInputs, first: int | None, device: torch.device) -> list[Tensor]:
    """Return the first boxes of each picture. None: all."""
    return [torch.tensor(np.asarray(boxes[:first])).to(device) for boxes in made.boxes_xyxy]


def _made_outputs(made: SecondStageInputs, device: torch.device) -> BoxOutputs:
    """Return generated outputs of the second stage, with torchvision's background as class 0."""
    logits = np.roll(np.asarray(made.outputs.class_logits), 1, axis=-1)
    deltas = np.pad(np.asarray(made.outputs.deltas), ((0, 0), (0, 0), (1, 0), (0, 0)))
    boxes = logits.shape[0] * logits.shape[1]
    return (
        torch.tensor(logits.reshape(boxes, -1)).to(device),
        torch.tensor(deltas.reshape(boxes, -1)).to(device),
    )


def _pooled(
    config: Config, made: SecondStageInputs, first: int | None, device: torch.device
) -> Tensor:
    """Return the pooled features of each picture's first boxes, float32 [R, C, P, P]."""
    pooled = roi_align_function(config)(made.levels, made.boxes_xyxy[:, :first])
    return _channels_first(pooled.reshape(-1, *pooled.shape[2:]), device)


def _channels_first(array: jax.Array, device: torch.device) -> Tensor:
    return torch.tensor(np.asarray(array, np.float32)).permute(0, 3, 1, 2).contiguous().to(device)
