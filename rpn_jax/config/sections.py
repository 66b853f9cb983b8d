"""The sections of a config and the whole of it: frozen dataclasses, checked when built.

The string below each field is its help text on the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from rpn_jax.config.checks import check, check_types

CANVAS_MULTIPLE = 32
"""Canvases and the anchors' validity are rounded up to this many pixels (reference behaviour)."""

NORM_GROUPS = 32
"""Groups of a group norm."""

Resize = Literal["host", "device"]
Precision = Literal["float32", "tf32", "bfloat16"]


@dataclass(frozen=True)
class BackboneConfig:
    """A ResNet (He et al. 2015) or ResNeXt (Xie et al. 2016)."""

    depth: Literal[18, 34, 50, 101, 152] = 50
    """Layers of the network."""
    style: Literal["pytorch", "caffe"] = "pytorch"
    """Where a bottleneck strides: 'pytorch' on its 3x3, 'caffe' on its first 1x1 convolution."""
    groups: int = 1
    """Groups of each 3x3 convolution (ResNeXt's cardinality); 1 for a ResNet."""
    base_width: int = 64
    """Channels a group at 64 planes; width = int(planes * base_width / 64) * groups."""
    num_stages: int = 4
    """Residual stages, 1 to 4; strides are 4, 8, 16, 32."""
    norm: Literal["frozen", "batch", "group"] = "frozen"
    """'frozen': stored batch statistics, folded into the convolution.
    'batch': statistics of the batch, over all devices.
    'group': group norm, 32 groups."""
    train_norm: bool = True
    """Train the norms' scales and biases outside the frozen stages."""
    frozen_stages: int = 1
    """Stages left untrained: -1 none, 0 the stem, k the stem and the first k stages."""

    def __post_init__(self) -> None:
        check_types("model.backbone", self)
        check(1 <= self.num_stages <= 4, "model.backbone.num_stages", self.num_stages, "1 to 4")
        check(self.groups >= 1, "model.backbone.groups", self.groups, "1 or more")
        check(self.base_width >= 1, "model.backbone.base_width", self.base_width, "1 or more")
        check(
            -1 <= self.frozen_stages <= self.num_stages,
            "model.backbone.frozen_stages",
            self.frozen_stages,
            f"-1 to {self.num_stages} (num_stages)",
        )
        check(
            self.depth >= 50 or (self.groups == 1 and self.base_width == 64),
            "model.backbone.groups",
            self.groups,
            f"1, with base_width 64, at depth {self.depth}: only 50 and deeper have groups",
        )
        widths = [2**stage * self.base_width * self.groups for stage in range(self.num_stages)]
        check(
            self.norm != "group" or all(width % NORM_GROUPS == 0 for width in widths),
            "model.backbone.base_width",
            self.base_width,
            f"such that its 3x3 convolutions, {widths} channels wide, have multiples of "
            f"{NORM_GROUPS}, as norm 'group' needs",
        )


@dataclass(frozen=True)
class AnchorConfig:
    """Anchors: centred at (column * stride, row * stride), never rounded."""

    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    """Pixels between cells, one a level, finest first."""
    scales: tuple[float, ...] = (8.0,)
    """Square root of an anchor's area, in strides."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width."""

    def __post_init__(self) -> None:
        check_types("model.rpn.anchors", self)
        for key in ("strides", "scales", "ratios"):
            values = getattr(self, key)
            check(
                len(values) >= 1 and all(value > 0 for value in values),
                f"model.rpn.anchors.{key}",
                values,
                "one or more positive numbers",
            )

    @property
    def per_cell(self) -> int:
        """Anchors a cell, A."""
        return len(self.scales) * len(self.ratios)


@dataclass(frozen=True)
class RPNHeadConfig:
    """The head of the first stage and its anchors (Ren et al. 2015, section 3.1)."""

    channels: int = 256
    """Channels of the head's 3x3 convolution."""
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    """The anchors of each level."""

    def __post_init__(self) -> None:
        check_types("model.rpn", self)
        check(self.channels >= 1, "model.rpn.channels", self.channels, "1 or more")


@dataclass(frozen=True)
class ModelConfig:
    """The network: backbone, pyramid, heads."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The convolutional trunk."""
    neck: Literal["fpn", "none"] = "fpn"
    """'fpn': a feature pyramid (Lin et al. 2016) with one extra level; 'none': the last stage."""
    neck_channels: int = 256
    """Channels of every pyramid level."""
    rpn: RPNHeadConfig = field(default_factory=RPNHeadConfig)
    """The first stage."""
    precision: Precision = "float32"
    """Arithmetic of the network; boxes and scores are float32 in all three.
    'float32': exact.
    'tf32': tensor cores on NVIDIA GPUs, the same rounding on CPUs.
    'bfloat16': activations of 16 bits."""

    def __post_init__(self) -> None:
        check_types("model", self)
        check(self.neck_channels >= 1, "model.neck_channels", self.neck_channels, "1 or more")
        stages = tuple(4 * 2**stage for stage in range(self.backbone.num_stages))
        strides = (*stages, stages[-1] * 2) if self.neck == "fpn" else stages[-1:]
        check(
            self.rpn.anchors.strides == strides,
            "model.rpn.anchors.strides",
            self.rpn.anchors.strides,
            f"{strides}, the strides of this backbone with neck '{self.neck}'",
        )


@dataclass(frozen=True)
class PixelConfig:
    """How pixels become the network's input: (value - mean) / std, then zeros as padding."""

    order: Literal["rgb", "bgr"] = "rgb"
    """Order of the channels that the network sees."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Mean of each channel, in that order, grey levels 0 to 255."""
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """Standard deviation of each channel, in that order, grey levels."""

    def __post_init__(self) -> None:
        check_types("pixels", self)
        check(all(std > 0 for std in self.std), "pixels.std", self.std, "positive")


@dataclass(frozen=True)
class RPNLossConfig:
    """Matching and sampling of anchors (Ren et al. 2015, section 3.1.2)."""

    positive_iou: float = 0.7
    """An anchor is positive from this IoU."""
    negative_iou: float = 0.3
    """An anchor is negative below this IoU; between the two it is ignored."""
    min_positive_iou: float = 0.3
    """A box's best anchors are positive too, from this IoU."""
    samples_per_image: int = 256
    """Anchors sampled a picture; 0 takes every positive and negative one."""
    positive_fraction: float = 0.5
    """Share of the samples that positives may take."""

    def __post_init__(self) -> None:
        check_types("rpn_loss", self)
        for key in ("positive_iou", "negative_iou", "min_positive_iou", "positive_fraction"):
            value = getattr(self, key)
            check(0 < value <= 1, f"rpn_loss.{key}", value, "above 0, at most 1")
        check(
            self.negative_iou <= self.positive_iou,
            "rpn_loss.negative_iou",
            self.negative_iou,
            f"at most rpn_loss.positive_iou, {self.positive_iou}",
        )
        check(
            self.samples_per_image >= 0,
            "rpn_loss.samples_per_image",
            self.samples_per_image,
            ">= 0",
        )


@dataclass(frozen=True)
class ProposalConfig:
    """From head outputs to boxes."""

    nms_pre: int = 2000
    """Best-scored anchors of each level that are decoded."""
    nms_iou: float = 0.7
    """A box is suppressed by a better one of its level above this IoU."""
    max_proposals: int = 1000
    """Boxes kept a picture, over all levels."""
    min_size: float = 0.0
    """Boxes must be wider and higher than this, in original pixels."""

    def __post_init__(self) -> None:
        check_types("rpn_proposals", self)
        check(self.nms_pre >= 1, "rpn_proposals.nms_pre", self.nms_pre, "1 or more")
        check(0 <= self.nms_iou <= 1, "rpn_proposals.nms_iou", self.nms_iou, "0 to 1")
        check(
            self.max_proposals >= 1, "rpn_proposals.max_proposals", self.max_proposals, "1 or more"
        )
        check(self.min_size >= 0, "rpn_proposals.min_size", self.min_size, "0 or more")


@dataclass(frozen=True)
class DataConfig:
    """Where pictures come from, and their way to the device."""

    dataset: Literal["coco", "tfds", "shapes"] = "coco"
    """'coco': a folder in COCO format.
    'tfds': a TensorFlow Datasets folder of COCO.
    'shapes': pictures drawn by code."""
    root: str = "data/coco"
    """Folder of the dataset: ROOT/annotations/instances_SPLIT.json and ROOT/SPLIT/*.jpg."""
    train_split: str = "train2017"
    """Split to train on."""
    eval_split: str = "val2017"
    """Split to evaluate on."""
    scale: tuple[int, int] = (1333, 800)
    """Pictures are resized to fit in (long, short) sides, pixels, keeping their ratio."""
    buckets: tuple[tuple[int, int], ...] = ((800, 1088), (1088, 800), (800, 1344), (1344, 800))
    """Canvases (height, width), pixels; a picture goes to the smallest that holds it."""
    batch_size: int = 16
    """Pictures a training step, over all devices."""
    eval_batch_size: int = 8
    """Pictures a step of evaluation, over all devices."""
    flip_probability: float = 0.5
    """Probability of mirroring a training picture."""
    min_image_size: int = 32
    """Pictures with a shorter side below this, pixels, are left out of training."""
    clip_boxes: bool = False
    """Cut boxes that reach out of their picture at its border, instead of refusing them."""
    loader_threads: int = 4
    """Threads that read and resize pictures."""
    resize: Resize = "host"
    """Where pictures are resized and mirrored, to the same pixels but for a rare grey level.
    'host': by the loader's threads.
    'device': by the devices, from originals; for where these wait for the host.
    640x480 pixels are 1.0 MB to send instead of 2.6 MB; pictures above their canvas are more."""

    def __post_init__(self) -> None:
        check_types("data", self)
        for key in ("batch_size", "eval_batch_size", "loader_threads"):
            value = getattr(self, key)
            check(value >= 1, f"data.{key}", value, "1 or more")
        check(self.min_image_size >= 0, "data.min_image_size", self.min_image_size, "0 or more")
        check(
            0 <= self.flip_probability <= 1,
            "data.flip_probability",
            self.flip_probability,
            "0 to 1",
        )
        long, short = self.scale
        check(long >= short >= 1, "data.scale", self.scale, "(long, short), long side first")
        check(
            all(
                side >= 1 and side % CANVAS_MULTIPLE == 0 for size in self.buckets for side in size
            ),
            "data.buckets",
            self.buckets,
            f"sides in multiples of {CANVAS_MULTIPLE}",
        )
        for height, width in ((short, long), (long, short)):
            check(
                any(height <= rows and width <= columns for rows, columns in self.buckets),
                "data.buckets",
                self.buckets,
                f"one that holds {height}x{width} (height x width), as data.scale needs",
            )


@dataclass(frozen=True)
class OptimConfig:
    """SGD with momentum, a linear warm-up and steps down."""

    learning_rate: float = 0.02
    """Learning rate after the warm-up, for base_batch_size pictures a step."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """L2 decay of every trained parameter."""
    warmup_steps: int = 500
    """Steps of linear warm-up."""
    warmup_ratio: float = 0.001
    """Share of the learning rate at the first step."""
    decay_epochs: tuple[int, ...] = (8, 11)
    """The learning rate falls after each of these epochs."""
    decay_factor: float = 0.1
    """By this factor."""
    base_batch_size: int = 16
    """Pictures a step that learning_rate is meant for."""
    auto_scale_lr: bool = False
    """Multiply learning_rate by data.batch_size / base_batch_size."""
    clip_norm: float = 0.0
    """Largest L2 norm of the whole gradient; 0 leaves it alone."""

    def __post_init__(self) -> None:
        check_types("optim", self)
        check(self.learning_rate > 0, "optim.learning_rate", self.learning_rate, "above 0")
        check(0 <= self.momentum < 1, "optim.momentum", self.momentum, "0 to below 1")
        check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        check(self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "0 or more")
        check(0 < self.warmup_ratio <= 1, "optim.warmup_ratio", self.warmup_ratio, "above 0, <= 1")
        check(
            list(self.decay_epochs) == sorted(set(self.decay_epochs))
            and all(epoch >= 1 for epoch in self.decay_epochs),
            "optim.decay_epochs",
            self.decay_epochs,
            "ascending epochs from 1",
        )
        check(0 < self.decay_factor <= 1, "optim.decay_factor", self.decay_factor, "above 0, <= 1")
        check(self.base_batch_size >= 1, "optim.base_batch_size", self.base_batch_size, "1 or more")
        check(self.clip_norm >= 0, "optim.clip_norm", self.clip_norm, "0 or more")


@dataclass(frozen=True)
class TrainConfig:
    """The course of a training run."""

    epochs: int = 12
    """Passes over the training split."""
    seed: int = 0
    """Fixes the initial weights, the order of the data, the flips and the sampling."""
    init_weights: str = ""
    """Weights to start from: a folder, a .pth or .pkl file, an https URL, or a name such as
    torchvision://resnet50; a backbone's are completed at random. Empty starts from random ones."""
    eval_every: int = 1
    """Evaluate after every this many epochs, and after the last; 0 never."""
    log_every: int = 10
    """Steps between two lines of metrics."""
    keep_last: int = 2
    """Checkpoints kept, beside the best by AR."""

    def __post_init__(self) -> None:
        check_types("train", self)
        check(self.epochs >= 1, "train.epochs", self.epochs, "1 or more")
        check(0 <= self.seed < 2**32, "train.seed", self.seed, "0 to 2**32 - 1")
        check(self.eval_every >= 0, "train.eval_every", self.eval_every, "0 or more")
        check(self.log_every >= 1, "train.log_every", self.log_every, "1 or more")
        check(self.keep_last >= 1, "train.keep_last", self.keep_last, "1 or more")


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes."""

    name: str = "rpn"
    """Name of the config."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    pixels: PixelConfig = field(default_factory=PixelConfig)
    """Normalisation of pictures."""
    rpn_loss: RPNLossConfig = field(default_factory=RPNLossConfig)
    """Matching and sampling of anchors in training."""
    rpn_proposals: ProposalConfig = field(default_factory=ProposalConfig)
    """Proposals from head outputs."""
    data: DataConfig = field(default_factory=DataConfig)
    """Pictures and their boxes."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser and its schedule."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The course of training."""

    def __post_init__(self) -> None:
        check_types("", self)


def config_changes(before: Any, now: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, old value, new value) of every field in which two configs differ."""
    for item in dataclasses.fields(now):
        key, old, new = prefix + item.name, getattr(before, item.name), getattr(now, item.name)
        if dataclasses.is_dataclass(new):
            yield from config_changes(old, new, f"{key}.")
        elif old != new:
            yield key, old, new


def with_precision(config: Config, precision: Precision) -> Config:
    """Return a copy of ``config`` whose network computes in ``precision``."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, precision=precision))
