"""The networks in plain PyTorch, with MMDetection's parameter names: ResNet, ResNeXt, FPN, heads.

It stands for what users of MMDetection run. `rpn_jax.weights.torch.conversion.state_dict` converts
weights of this package for it.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from rpn_jax.config import BackboneConfig, ModelConfig, RoIHeadConfig
from rpn_jax.models.layers import NORM_GROUPS
from rpn_jax.models.resnet import BLOCKS, BOTTLENECK_EXPANSION, STEM_FEATURES
from rpn_jax.models.roi.head import LAYER4

Level = tuple[Tensor, Tensor]
"""Objectness [B, A, Hl, Wl] and deltas [B, A * 4, Hl, Wl] of a level."""


class TorchDetector(nn.Module):
    """Maps normalised pictures [B, 3, H, W] to features, and to the outputs of every level.

    If the config has a second stage, ``roi_head`` maps pooled features to its outputs.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = ResNet(config.backbone)
        channels = self.backbone.channels
        self.neck = FPN(channels, config.neck_channels) if config.neck == "fpn" else None
        in_channels = config.neck_channels if self.neck else channels[-1]
        self.rpn_head = Head(in_channels, config.rpn.channels, config.rpn.anchors.per_cell)
        if config.roi is not None:
            self.roi_head = RoIHead(config.roi, config.backbone, in_channels)

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the features that all heads share."""
        features = self.backbone(images)
        return self.neck(features) if self.neck else features[-1:]

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Level]]:
        levels = self.features(images)
        return levels, [self.rpn_head(level) for level in levels]


class ResNet(nn.Module):
    """Stem and stages. Parameters that the config freezes have no gradients."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.norm_name = _norm_name(config, 1)
        self.conv1 = nn.Conv2d(3, STEM_FEATURES, 7, 2, 3, bias=False)
        self.add_module(self.norm_name, _norm(config, STEM_FEATURES))
        self.channels: list[int] = []
        channels = STEM_FEATURES
        for stage in range(config.num_stages):
            is_dilated = config.dilate_last_stage and stage == config.num_stages - 1
            blocks = residual_stage(config, stage, channels, is_dilated)
            self.add_module(f"layer{stage + 1}", blocks)
            channels = blocks[-1].out_channels
            self.channels.append(channels)
        self._config = config
        self._freeze_parameters()
        self.train()

    def train(self, mode: bool = True) -> ResNet:
        """Switch the mode. Frozen norms keep using their stored statistics."""
        super().train(mode)
        if self._config.norm == "frozen":
            freeze_statistics(self)
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.relu(self.get_submodule(self.norm_name)(self.conv1(images)))
        x = F.max_pool2d(x, 3, 2, 1)
        features = []
        for stage in range(len(self.channels)):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            features.append(x)
        return features

    def _freeze_parameters(self) -> None:
        config = self._config
        if config.frozen_stages >= 0:
            stages = [f"layer{stage}" for stage in range(1, config.frozen_stages + 1)]
            for name in ("conv1", self.norm_name, *stages):
                self.get_submodule(name).requires_grad_(False)
        if not config.train_norm:
            for norm in batch_norms(self):
                norm.requires_grad_(False)


def residual_stage(
    config: BackboneConfig, stage: int, in_channels: int, is_dilated: bool
) -> nn.Sequential:
    """Return the blocks of stage 0, 1, ... A dilated stage has dilation 2 instead of stride 2."""
    blocks: list[Block] = []
    channels = in_channels
    for number in range(BLOCKS[config.depth][stage]):
        stride = 2 if number == 0 and stage > 0 and not is_dilated else 1
        planes = STEM_FEATURES * 2**stage
        blocks.append(Block(config, channels, planes, stride, dilation=2 if is_dilated else 1))
        channels = blocks[-1].out_channels
    return nn.Sequential(*blocks)


class Block(nn.Module):
    """A basic or a bottleneck residual block. Only a bottleneck can be dilated."""

    def __init__(
        self, config: BackboneConfig, in_channels: int, planes: int, stride: int, dilation: int
    ) -> None:
        super().__init__()
        if config.depth < 50:
            self.out_channels = planes
            shapes = [(in_channels, planes, 3, stride, 1), (planes, planes, 3, 1, 1)]
        else:
            self.out_channels = planes * BOTTLENECK_EXPANSION
            width = int(planes * config.base_width / 64) * config.groups
            stride1, stride2 = (stride, 1) if config.style == "caffe" else (1, stride)
            shapes = [
                (in_channels, width, 1, stride1, 1),
                (width, width, 3, stride2, config.groups),
                (width, self.out_channels, 1, 1, 1),
            ]
        self.names = []
        for number, (channels_in, channels_out, size, step, groups) in enumerate(shapes, start=1):
            spread = dilation if size == 3 else 1
            conv = nn.Conv2d(
                channels_in,
                channels_out,
                size,
                step,
                padding=size // 2 * spread,
                dilation=spread,
                groups=groups,
                bias=False,
            )
            self.add_module(f"conv{number}", conv)
            self.add_module(_norm_name(config, number), _norm(config, channels_out))
            self.names.append((f"conv{number}", _norm_name(config, number)))
        self.downsample = None
        if stride != 1 or in_channels != self.out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, self.out_channels, 1, stride, bias=False),
                _norm(config, self.out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for place, (conv, norm) in enumerate(self.names):
            y = self.get_submodule(norm)(self.get_submodule(conv)(F.relu(y) if place else y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class FPN(nn.Module):
    """A feature pyramid. Its last level is every second pixel of the level before."""

    def __init__(self, channels: list[int], out_channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(NamedConv(count, out_channels, 1) for count in channels)
        self.fpn_convs = nn.ModuleList(NamedConv(out_channels, out_channels, 3) for _ in channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        sums = [conv(x) for conv, x in zip(self.lateral_convs, features, strict=True)]
        for place in range(len(sums) - 1, 0, -1):
            size = sums[place - 1].shape[2:]
            sums[place - 1] = sums[place - 1] + F.interpolate(sums[place], size=size)
        levels = [conv(x) for conv, x in zip(self.fpn_convs, sums, strict=True)]
        return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]


class NamedConv(nn.Module):
    """A convolution with bias, named ``conv``."""

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Head(nn.Module):
    """A 3x3 convolution, ReLU, and 1x1 convolutions to objectness and deltas."""

    def __init__(self, in_channels: int, channels: int, anchors: int) -> None:
        super().__init__()
        self.rpn_conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, anchors, 1)
        self.rpn_reg = nn.Conv2d(channels, anchors * 4, 1)

    def forward(self, x: Tensor) -> Level:
        hidden = F.relu(self.rpn_conv(x))
        return self.rpn_cls(hidden), self.rpn_reg(hidden)


class RoIHead(nn.Module):
    """The second stage after RoIAlign: maps pooled features [R, C, P, P] to logits and deltas."""

    def __init__(self, config: RoIHeadConfig, backbone: BackboneConfig, in_channels: int) -> None:
        super().__init__()
        self.shared_head: nn.Module | None = None
        features, hidden = in_channels * config.pooled_size**2, [config.channels] * 2
        if config.head == "layer4":
            layer4 = residual_stage(backbone, LAYER4, in_channels, is_dilated=False)
            self.shared_head = nn.ModuleDict({"layer4": layer4})
            features, hidden = layer4[-1].out_channels, []
        self.bbox_head = BoxHead(features, hidden, config.num_classes)
        self._frozen_norms = backbone.norm == "frozen"
        if not backbone.train_norm:
            for norm in batch_norms(self):
                norm.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> RoIHead:
        """Switch the mode. Frozen norms keep using their stored statistics."""
        super().train(mode)
        if self._frozen_norms:
            freeze_statistics(self)
        return self

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        if self.shared_head is not None:
            pooled = self.shared_head["layer4"](pooled).mean(dim=(2, 3))
        return self.bbox_head(pooled.flatten(start_dim=1))


class BoxHead(nn.Module):
    """Fully connected layers with ReLU, then one layer each for the logits and the deltas."""

    def __init__(self, in_features: int, hidden: list[int], num_classes: int) -> None:
        super().__init__()
        sizes = [in_features, *hidden]
        self.shared_fcs = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.fc_cls = nn.Linear(sizes[-1], num_classes + 1)
        self.fc_reg = nn.Linear(sizes[-1], 4 * num_classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.shared_fcs:
            features = F.relu(layer(features))
        return self.fc_cls(features), self.fc_reg(features)


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Return all batch norms of a network."""
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def freeze_statistics(network: nn.Module) -> None:
    """Make batch norms use their stored statistics. Their scales and biases still train."""
    for norm in batch_norms(network):
        norm.eval()


def _norm_name(config: BackboneConfig, number: int) -> str:
    return f"{'gn' if config.norm == 'group' else 'bn'}{number}"


def _norm(config: BackboneConfig, channels: int) -> nn.Module:
    if config.norm == "group":
        return nn.GroupNorm(NORM_GROUPS, channels)
    return nn.BatchNorm2d(channels)
