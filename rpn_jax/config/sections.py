"""Define the sections of a config: frozen dataclasses that check their values when built.

The string below each field is its help text on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from rpn_jax.config.checks import check, check_types
from rpn_jax.config.classes import COCO_CATEGORY_IDS, COCO_CLASSES
from rpn_jax.config.data import DataConfig

NORM_GROUPS = 32
"""Number of channel groups in a group norm."""

Precision = Literal["float32", "tf32", "bfloat16"]


@dataclass(frozen=True)
class BackboneConfig:
    """A ResNet (He et al. 2015) or ResNeXt (Xie et al. 2016)."""

    depth: Literal[18, 34, 50, 101, 152] = 50
    """Number of layers, as in the name ResNet-50."""
    style: Literal["pytorch", "caffe"] = "pytorch"
    """Convolution that has the stride of a bottleneck: 'pytorch' the 3x3, 'caffe' the first 1x1."""
    groups: int = 1
    """Number of groups in each 3x3 convolution (ResNeXt's cardinality). 1 for a ResNet."""
    base_width: int = 64
    """ResNeXt base width: sets the number of channels in each group. 64 for a ResNet.
    A 3x3 convolution has int(planes * base_width / 64) * groups channels."""
    num_stages: int = 4
    """Number of residual stages, 1 to 4. Their strides are 4, 8, 16 and 32 pixels."""
    norm: Literal["frozen", "batch", "group"] = "frozen"
    """Normalisation layer.
    'frozen': batch norm with the stored statistics, folded into the convolution.
    'batch': batch norm with the statistics of the batch, over all devices.
    'group': group norm with 32 groups."""
    dilate_last_stage: bool = False
    """Give the last stage stride 1 and dilation 2 instead of stride 2 (DC5). Its features then have
    the stride of the stage before it."""
    train_norm: bool = True
    """Train the scales and biases of the norms outside the frozen stages."""
    frozen_stages: int = 1
    """Part that is not trained: -1 nothing, 0 the stem, k the stem and the first k stages."""

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
            f"1, with base_width 64, at depth {self.depth}: groups need depth 50 or more",
        )
        check(
            not self.dilate_last_stage or (self.depth >= 50 and self.num_stages >= 2),
            "model.backbone.dilate_last_stage",
            self.dilate_last_stage,
            "false, unless depth is 50 or more and num_stages is 2 or more",
        )
        widths = [2**stage * self.base_width * self.groups for stage in range(self.num_stages)]
        check(
            self.norm != "group" or all(width % NORM_GROUPS == 0 for width in widths),
            "model.backbone.base_width",
            self.base_width,
            f"a width at which the 3x3 convolutions of all stages have multiples of {NORM_GROUPS} "
            f"channels, as norm 'group' needs; they have {widths} channels",
        )


@dataclass(frozen=True)
class AnchorConfig:
    """The anchors of each level. They are centred at (column * stride, row * stride)."""

    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    """Distance between the cells of each level, in pixels, finest level first."""
    scales: tuple[float, ...] = (8.0,)
    """Anchor sizes (square root of the area) in multiples of the level's stride."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Aspect ratios of the anchors: height divided by width."""

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
        """Number of anchors in a cell, A."""
        return len(self.scales) * len(self.ratios)


@dataclass(frozen=True)
class RPNHeadConfig:
    """The RPN head and its anchors (Ren et al. 2015, section 3.1)."""

    channels: int = 256
    """Number of channels of the head's 3x3 convolution."""
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    """Strides, sizes and shapes of the anchors."""

    def __post_init__(self) -> None:
        check_types("model.rpn", self)
        check(self.channels >= 1, "model.rpn.channels", self.channels, "1 or more")


@dataclass(frozen=True)
class RoIHeadConfig:
    """The second stage: classes and deltas of boxes, from features pooled by RoIAlign."""

    num_classes: int = len(COCO_CLASSES)
    """Number of classes, C. The background is not one of them."""
    class_names: tuple[str, ...] = ()
    """Name of each class. Labels are positions in it. `train` sets it from the dataset. By default
    the names of COCO for 80 classes, and 'class 1', 'class 2' ... for another number."""
    category_ids: tuple[int, ...] = ()
    """Id of each class in files of results. `train` sets it from the dataset. By default COCO's ids
    for the names of COCO, and 1, 2 ... for others."""
    head: Literal["fc", "layer4"] = "fc"
    """Layers between the pooled features of a box and its outputs.
    'fc': two fully connected layers (Lin et al. 2016).
    'layer4': the ResNet's last stage and a mean over its output (He et al. 2015)."""
    channels: int = 1024
    """Number of outputs of each hidden layer of head 'fc'."""
    pooled_size: int = 7
    """Number of bins along each side of a box. RoIAlign returns one value for each bin."""

    def __post_init__(self) -> None:
        check_types("model.roi", self)
        check(self.num_classes >= 1, "model.roi.num_classes", self.num_classes, "1 or more")
        if not self.class_names or self.class_names == COCO_CLASSES:
            object.__setattr__(self, "class_names", _default_class_names(self.num_classes))
        if self.category_ids in ((), COCO_CATEGORY_IDS) or self._counts_from_one:
            object.__setattr__(self, "category_ids", _default_category_ids(self.class_names))
        check(
            len(set(self.class_names)) == len(self.class_names) == self.num_classes,
            "model.roi.class_names",
            self.class_names,
            f"{self.num_classes} different names, one for each of model.roi.num_classes",
        )
        check(
            len(set(self.category_ids)) == len(self.category_ids) == self.num_classes,
            "model.roi.category_ids",
            self.category_ids,
            f"{self.num_classes} different ids, one for each of model.roi.num_classes",
        )
        check(self.channels >= 1, "model.roi.channels", self.channels, "1 or more")
        check(self.pooled_size >= 1, "model.roi.pooled_size", self.pooled_size, "1 or more")

    @property
    def has_default_names(self) -> bool:
        """Whether the class names are those of a config without ``class_names``."""
        return self.class_names == _default_class_names(self.num_classes)

    @property
    def _counts_from_one(self) -> bool:
        """Whether the ids are the default ids of another number of classes."""
        count = len(self.category_ids)
        return count != self.num_classes and self.category_ids == tuple(range(1, count + 1))


@dataclass(frozen=True)
class ModelConfig:
    """The detector: an RPN, or with a second stage a Faster R-CNN."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Network that computes features from pictures."""
    neck: Literal["fpn", "none"] = "fpn"
    """Features that the head receives.
    'fpn': a feature pyramid (Lin et al. 2016) of all stages with one extra level.
    'none': the output of the last stage."""
    neck_channels: int = 256
    """Number of channels of each pyramid level."""
    rpn: RPNHeadConfig = field(default_factory=RPNHeadConfig)
    """The RPN head."""
    roi: RoIHeadConfig | None = None
    """The second stage. None: the detector is an RPN, and its boxes have no classes."""
    precision: Precision = "float32"
    """Arithmetic of the network. Boxes and scores are float32 in all three.
    'float32': full float32 precision.
    'tf32': tensor cores on NVIDIA GPUs, the same rounding on CPUs.
    'bfloat16': 16-bit activations."""

    def __post_init__(self) -> None:
        check_types("model", self)
        check(self.neck_channels >= 1, "model.neck_channels", self.neck_channels, "1 or more")
        if self.roi is not None and self.roi.head == "layer4":
            check(
                self.neck == "none" and self.backbone.num_stages == 3,
                "model.roi.head",
                self.roi.head,
                "'fc', unless model.neck is 'none' and model.backbone.num_stages is 3: 'layer4' is "
                "the fourth stage",
            )


@dataclass(frozen=True)
class PixelConfig:
    """Normalisation of pixels: (value - mean) / std. The padding is 0 after it."""

    order: Literal["rgb", "bgr"] = "rgb"
    """Order of the colour channels in the network's input."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Mean of each channel in that order, in grey levels from 0 to 255."""
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """Standard deviation of each channel in that order, in grey levels."""

    def __post_init__(self) -> None:
        check_types("pixels", self)
        check(all(std > 0 for std in self.std), "pixels.std", self.std, "positive")


@dataclass(frozen=True)
class RPNLossConfig:
    """Matching and sampling of anchors for the RPN loss (Ren et al. 2015, section 3.1.2)."""

    positive_iou: float = 0.7
    """An anchor is positive if its IoU with a box is at least this."""
    negative_iou: float = 0.3
    """An anchor is negative if its IoU with every box is below this. Between the two thresholds it
    is ignored."""
    min_positive_iou: float = 0.3
    """The anchors with a box's highest IoU are positive too, if that IoU is at least this."""
    samples_per_image: int = 256
    """Number of anchors sampled from each picture. 0 uses all positive and negative anchors."""
    positive_fraction: float = 0.5
    """Largest fraction of the samples that may be positive."""
    inside_only: bool = False
    """Use only the anchors that lie inside their picture."""

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
            "0 or more",
        )


@dataclass(frozen=True)
class ProposalConfig:
    """Selection of proposals from the outputs of the RPN head."""

    nms_pre: int = 2000
    """Number of anchors of each level that are decoded, those with the highest scores."""
    nms_iou: float = 0.7
    """NMS removes a box whose IoU with a better box of its level is above this."""
    max_proposals: int = 1000
    """Largest number of proposals in a picture, over all levels."""
    min_size: float = 0.0
    """Smallest width and height, in original pixels. Only larger boxes are kept."""

    def __post_init__(self) -> None:
        check_types("rpn_proposals", self)
        check(self.nms_pre >= 1, "rpn_proposals.nms_pre", self.nms_pre, "1 or more")
        check(0 <= self.nms_iou <= 1, "rpn_proposals.nms_iou", self.nms_iou, "0 to 1")
        check(
            self.max_proposals >= 1, "rpn_proposals.max_proposals", self.max_proposals, "1 or more"
        )
        check(self.min_size >= 0, "rpn_proposals.min_size", self.min_size, "0 or more")


@dataclass(frozen=True)
class RoILossConfig:
    """Boxes that train the second stage: proposals of the RPN, matched to objects and sampled."""

    nms_pre: int = 2000
    """Number of anchors of each level that are decoded, as rpn_proposals.nms_pre, in training."""
    max_proposals: int = 1000
    """Largest number of proposals in a picture, as rpn_proposals.max_proposals, in training."""
    positive_iou: float = 0.5
    """A proposal is positive if its IoU with an object is at least this. Others are background."""
    samples_per_image: int = 512
    """Number of boxes sampled from the proposals and objects of each picture. 0 uses all."""
    positive_fraction: float = 0.25
    """Largest fraction of the samples that may be positive."""

    def __post_init__(self) -> None:
        check_types("roi_loss", self)
        for key in ("nms_pre", "max_proposals"):
            value = getattr(self, key)
            check(value >= 1, f"roi_loss.{key}", value, "1 or more")
        for key in ("positive_iou", "positive_fraction"):
            value = getattr(self, key)
            check(0 < value <= 1, f"roi_loss.{key}", value, "above 0, at most 1")
        check(
            self.samples_per_image >= 0,
            "roi_loss.samples_per_image",
            self.samples_per_image,
            "0 or more",
        )


@dataclass(frozen=True)
class DetectionConfig:
    """Selection of detections from the outputs of the second stage."""

    min_score: float = 0.05
    """Only boxes with a higher score are kept."""
    nms_iou: float = 0.5
    """NMS removes a box whose IoU with a better box of its class is above this."""
    max_detections: int = 100
    """Largest number of detections in a picture, over all classes."""

    def __post_init__(self) -> None:
        check_types("roi_detections", self)
        check(0 <= self.min_score < 1, "roi_detections.min_score", self.min_score, "0 to below 1")
        check(0 <= self.nms_iou <= 1, "roi_detections.nms_iou", self.nms_iou, "0 to 1")
        check(
            self.max_detections >= 1,
            "roi_detections.max_detections",
            self.max_detections,
            "1 or more",
        )


@dataclass(frozen=True)
class OptimConfig:
    """SGD with momentum, a linear warm-up and a learning rate that decays in steps."""

    learning_rate: float = 0.02
    """Learning rate after the warm-up, for batches of base_batch_size pictures."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay (L2) of every trained parameter."""
    warmup_steps: int = 500
    """Number of steps of the linear warm-up."""
    warmup_ratio: float = 0.001
    """Fraction of the learning rate at the first step."""
    decay_epochs: tuple[int, ...] = (8, 11)
    """Epochs after which the learning rate is multiplied by decay_factor."""
    decay_factor: float = 0.1
    """Factor of each decay of the learning rate."""
    base_batch_size: int = 16
    """Batch size, in pictures, for which learning_rate is set."""
    auto_scale_lr: bool = False
    """Multiply learning_rate by data.batch_size / base_batch_size."""
    clip_norm: float = 0.0
    """Largest L2 norm of the whole gradient. Longer gradients are scaled down. 0 turns this off."""

    def __post_init__(self) -> None:
        check_types("optim", self)
        check(self.learning_rate > 0, "optim.learning_rate", self.learning_rate, "above 0")
        check(0 <= self.momentum < 1, "optim.momentum", self.momentum, "0 to below 1")
        check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        check(self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "0 or more")
        for key in ("warmup_ratio", "decay_factor"):
            value = getattr(self, key)
            check(0 < value <= 1, f"optim.{key}", value, "above 0, at most 1")
        check(
            list(self.decay_epochs) == sorted(set(self.decay_epochs))
            and all(epoch >= 1 for epoch in self.decay_epochs),
            "optim.decay_epochs",
            self.decay_epochs,
            "epochs from 1 in ascending order",
        )
        check(self.base_batch_size >= 1, "optim.base_batch_size", self.base_batch_size, "1 or more")
        check(self.clip_norm >= 0, "optim.clip_norm", self.clip_norm, "0 or more")


@dataclass(frozen=True)
class TrainConfig:
    """Length, start, evaluation and checkpoints of a training run."""

    epochs: int = 12
    """Number of passes over the training split."""
    seed: int = 0
    """Random seed of the initial weights, the order of the data, the flips and the sampling."""
    init_weights: str = ""
    """Weights to start from: a folder, a .pth or .pkl file, an https URL, or a name such as
    torchvision://resnet50 or mmdetection://faster-rcnn_r50_fpn_1x_coco. Modules that they do not
    hold start from random values. So do the layers with outputs for each class, if the weights have
    another number of classes. By default all weights start from random values."""
    eval_every: int = 1
    """Number of epochs between evaluations. The last epoch is evaluated too. 0 never evaluates."""
    log_every: int = 10
    """Number of steps between two lines of metrics."""
    save_every_steps: int = 0
    """Number of steps between checkpoints. One is saved at the end of each epoch too. 0 turns this
    off."""
    save_every_minutes: float = 30.0
    """Minutes between checkpoints within an epoch. 0 turns this off."""
    keep_last: int = 2
    """Number of latest checkpoints to keep. The best one is kept too. With 2 or more, a run can
    continue if the last one is damaged."""
    gradient_parts: int = 1
    """Number of equal parts in which each device takes its pictures of a batch, one after the other
    (gradient accumulation). The step is that of the whole batch, with less memory."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights (EMA) in each step, for example 0.999. Evaluations
    and checkpoints then hold the average. 0 keeps none."""
    patience: int = 0
    """Number of evaluations without a better main figure (AR@1000, or AP of a detector) after which
    the run ends early. 0 never ends it early."""
    profile_steps: int = 0
    """Number of steps to record with JAX's profiler, soon after the start. The trace is in the
    folder profile of the work directory. 0 records none."""

    def __post_init__(self) -> None:
        check_types("train", self)
        check(self.epochs >= 1, "train.epochs", self.epochs, "1 or more")
        check(0 <= self.seed < 2**32, "train.seed", self.seed, "0 to 2**32 - 1")
        check(self.eval_every >= 0, "train.eval_every", self.eval_every, "0 or more")
        check(self.log_every >= 1, "train.log_every", self.log_every, "1 or more")
        for key in ("save_every_steps", "save_every_minutes"):
            value = getattr(self, key)
            check(value >= 0, f"train.{key}", value, "0 or more")
        check(self.gradient_parts >= 1, "train.gradient_parts", self.gradient_parts, "1 or more")
        check(0 <= self.ema_decay < 1, "train.ema_decay", self.ema_decay, "0 or more, below 1")
        check(self.patience >= 0, "train.patience", self.patience, "0 or more")
        check(self.profile_steps >= 0, "train.profile_steps", self.profile_steps, "0 or more")
        check(self.keep_last >= 1, "train.keep_last", self.keep_last, "1 or more")


@dataclass(frozen=True)
class Config:
    """All settings that determine a run's results."""

    name: str = "rpn"
    """Name of the config."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The detector."""
    pixels: PixelConfig = field(default_factory=PixelConfig)
    """Normalisation of pixels."""
    rpn_loss: RPNLossConfig = field(default_factory=RPNLossConfig)
    """Matching and sampling of anchors for the RPN loss."""
    rpn_proposals: ProposalConfig = field(default_factory=ProposalConfig)
    """Selection of proposals."""
    roi_loss: RoILossConfig = field(default_factory=RoILossConfig)
    """Boxes that train the second stage."""
    roi_detections: DetectionConfig = field(default_factory=DetectionConfig)
    """Selection of detections."""
    data: DataConfig = field(default_factory=DataConfig)
    """The dataset and the loading of its pictures."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser and the schedule of its learning rate."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length, start, evaluation and checkpoints of a training run."""

    def __post_init__(self) -> None:
        check_types("", self)
        check(
            self.train.gradient_parts == 1 or self.model.backbone.norm != "batch",
            "train.gradient_parts",
            self.train.gradient_parts,
            "1 with model.backbone.norm 'batch': its statistics are those of the whole batch",
        )


def _default_class_names(count: int) -> tuple[str, ...]:
    if count == len(COCO_CLASSES):
        return COCO_CLASSES
    return tuple(f"class {number}" for number in range(1, count + 1))


def _default_category_ids(class_names: tuple[str, ...]) -> tuple[int, ...]:
    if class_names == COCO_CLASSES:
        return COCO_CATEGORY_IDS
    return tuple(range(1, len(class_names) + 1))


def with_precision(config: Config, precision: Precision) -> Config:
    """Return a copy of ``config`` whose network computes in ``precision``."""
    return replace(config, model=replace(config.model, precision=precision))
