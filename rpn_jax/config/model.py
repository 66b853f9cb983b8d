"""Sections of a config that define the network and its input.

The string below each field is its help text on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rpn_jax.config.checks import check, check_types
from rpn_jax.config.classes import COCO_CATEGORY_IDS, COCO_CLASSES

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
    backbone_class: str = ""
    """Class of a backbone of your own, such as 'my_package.my_module:MyBackbone', in place of the
    ResNet. It is a Flax module with the members of `rpn_jax.models.backbone.Backbone`, made without
    arguments. The settings of `backbone` and `precision` then do not apply to it."""
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
        module, _, name = self.backbone_class.partition(":")
        names = [*module.split("."), name]
        check(
            not self.backbone_class or (all(map(str.isidentifier, names)) and names[-2] != "py"),
            "model.backbone_class",
            self.backbone_class,
            "a module (without .py) and a class, such as 'my_package.my_module:MyBackbone'",
        )
        check(
            not self.backbone_class or self.roi is None or self.roi.head == "fc",
            "model.roi.head",
            self.roi and self.roi.head,
            "'fc' with model.backbone_class: 'layer4' is a stage of the ResNet",
        )
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


def _default_class_names(count: int) -> tuple[str, ...]:
    if count == len(COCO_CLASSES):
        return COCO_CLASSES
    return tuple(f"class {number}" for number in range(1, count + 1))


def _default_category_ids(class_names: tuple[str, ...]) -> tuple[int, ...]:
    if class_names == COCO_CLASSES:
        return COCO_CATEGORY_IDS
    return tuple(range(1, len(class_names) + 1))
