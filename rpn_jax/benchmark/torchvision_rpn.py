"""torchvision's ResNet-50-FPN RPN, with the anchors, candidates and thresholds of a config."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.ops import FrozenBatchNorm2d

from rpn_jax.benchmark.torch_network import Level
from rpn_jax.config import Config, load_config, replace

RENAMES = (
    (r"^backbone\.", "backbone.body."),
    (r"^neck\.lateral_convs\.(\d)\.conv\.", r"backbone.fpn.inner_blocks.\1.0."),
    (r"^neck\.fpn_convs\.(\d)\.conv\.", r"backbone.fpn.layer_blocks.\1.0."),
    (r"^rpn_head\.rpn_conv\.", "rpn.head.conv.0.0."),
    (r"^rpn_head\.rpn_cls\.", "rpn.head.cls_logits."),
    (r"^rpn_head\.rpn_reg\.", "rpn.head.bbox_pred."),
)
"""From MMDetection's names to torchvision's."""

LAYERS = 5
"""Residual stages and the stem, as torchvision counts what trains."""


def is_torchvision_model(config: Config) -> bool:
    """Whether torchvision has this network: a ResNet-50-FPN as in ``rpn_r50_fpn_1x_coco``."""
    original = load_config("rpn_r50_fpn_1x_coco").model
    return replace(config.model, precision=original.precision) == original


class TorchvisionRPN(nn.Module):
    """Normalised pictures [B, 3, H, W] to the outputs of every level; the rest as methods."""

    def __init__(self, config: Config, image_sizes: list[tuple[int, int]]) -> None:
        """``image_sizes`` are (height, width) of a batch's pictures, which all fill the canvas."""
        super().__init__()
        anchors, loss, proposals = config.model.anchors, config.loss, config.proposals
        self.image_sizes = image_sizes
        self.backbone = resnet_fpn_backbone(
            backbone_name="resnet50",
            weights=None,
            norm_layer=FrozenBatchNorm2d,
            trainable_layers=LAYERS - 1 - config.model.backbone.frozen_stages,
        )
        (scale,) = anchors.scales
        sizes = tuple((int(stride * scale),) for stride in anchors.strides)
        self.rpn = RegionProposalNetwork(
            AnchorGenerator(sizes, (anchors.ratios,) * len(sizes)),
            RPNHead(config.model.neck_channels, anchors.per_cell),
            fg_iou_thresh=loss.positive_iou,
            bg_iou_thresh=loss.negative_iou,
            batch_size_per_image=loss.samples_per_image,
            positive_fraction=loss.positive_fraction,
            pre_nms_top_n={"training": proposals.nms_pre, "testing": proposals.nms_pre},
            post_nms_top_n={
                "training": proposals.max_proposals,
                "testing": proposals.max_proposals,
            },
            nms_thresh=proposals.nms_iou,
        )

    def load(self, state_dict: dict[str, Tensor]) -> None:
        """Take weights under MMDetection's names."""
        renamed = {}
        for key, value in state_dict.items():
            for pattern, replacement in RENAMES:
                key, replaced = re.subn(pattern, replacement, key)
                if replaced:
                    break
            if not key.endswith("num_batches_tracked"):
                renamed[key] = value
        self.load_state_dict(renamed)

    def forward(self, images: Tensor) -> list[Level]:
        features = list(self.backbone(images).values())
        objectness, deltas = self.rpn.head(features)
        return list(zip(objectness, deltas, strict=True))

    def anchors(self, level_shapes: list[tuple[int, int]], device: torch.device) -> list[Tensor]:
        """Anchors [K, 4] of each picture, from the (rows, columns) of each level; made once."""
        levels = [torch.empty(1, 1, *shape, device=device) for shape in level_shapes]
        canvas = torch.empty(len(self.image_sizes), 3, *self.image_sizes[0], device=device)
        return self.rpn.anchor_generator(ImageList(canvas, self.image_sizes), levels)

    def propose(self, levels: list[Level], anchors: list[Tensor]) -> list[Tensor]:
        """Boxes of each picture: the part of torchvision's forward that follows its head."""
        objectness, deltas = _flat(levels)
        boxes = self.rpn.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)
        counts = [level[0][0].numel() for level in levels]
        return self.rpn.filter_proposals(boxes, objectness, self.image_sizes, counts)[0]

    def loss(self, levels: list[Level], anchors: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Matching, sampling and both losses; torchvision's forward would propose as well."""
        labels, matched = self.rpn.assign_targets_to_anchors(
            anchors, [{"boxes": of_picture} for of_picture in boxes]
        )
        targets = self.rpn.box_coder.encode(matched, anchors)
        objectness, deltas = _flat(levels)
        return torch.stack(self.rpn.compute_loss(objectness, deltas, labels, targets)).sum()


def _flat(levels: list[Level]) -> tuple[Tensor, Tensor]:
    """Float32 logits [B * K, 1] and deltas [B * K, 4] in the anchors' order."""
    objectness, deltas = zip(*levels, strict=True)
    return concat_box_prediction_layers(
        [level.float() for level in objectness], [level.float() for level in deltas]
    )
