"""torchvision's ResNet-50-FPN RPN, with the candidates and thresholds of a config.

The anchors are an argument. torchvision's own are rounded to whole pixels. If a level's stride does
not divide the canvas, torchvision also changes the distance of the anchors (61 rows instead of 64
at height 800).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)

from rpn_jax.benchmark.torch_network import Level, freeze_statistics
from rpn_jax.config import Config

RENAMES = (
    (r"^backbone\.", "backbone.body."),
    (r"^neck\.lateral_convs\.(\d)\.conv\.", r"backbone.fpn.inner_blocks.\1.0."),
    (r"^neck\.fpn_convs\.(\d)\.conv\.", r"backbone.fpn.layer_blocks.\1.0."),
    (r"^rpn_head\.rpn_conv\.", "rpn.head.conv.0.0."),
    (r"^rpn_head\.rpn_cls\.", "rpn.head.cls_logits."),
    (r"^rpn_head\.rpn_reg\.", "rpn.head.bbox_pred."),
)
"""Patterns that change MMDetection's parameter names to torchvision's."""

LAYERS = 5
"""Number of residual stages plus the stem: torchvision's count of trainable layers."""


def torchvision_key(key: str) -> str:
    """Return torchvision's name of the parameter that MMDetection calls ``key``."""
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


class TorchvisionRPN(nn.Module):
    """Maps normalised pictures [B, 3, H, W] to features, and to the outputs of every level."""

    def __init__(self, config: Config, image_sizes: list[tuple[int, int]]) -> None:
        """Build the network for a batch. All pictures of ``image_sizes`` must fill the canvas."""
        super().__init__()
        loss, proposals = config.rpn_loss, config.rpn_proposals
        self.image_sizes = image_sizes
        self.backbone = resnet_fpn_backbone(
            backbone_name="resnet50",
            weights=None,
            # FrozenBatchNorm2d would not train scales and biases.
            norm_layer=nn.BatchNorm2d,
            trainable_layers=LAYERS - 1 - config.model.backbone.frozen_stages,
        )
        self.rpn = RegionProposalNetwork(
            nn.Identity(),  # instead of an anchor generator, which only `forward` uses
            RPNHead(config.model.neck_channels, config.model.rpn.anchors.per_cell),
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
        self.train()

    def train(self, mode: bool = True) -> TorchvisionRPN:
        """Switch the mode. Norms keep using their stored statistics."""
        super().train(mode)
        freeze_statistics(self)
        return self

    def load(self, state_dict: dict[str, Tensor]) -> None:
        """Load weights with MMDetection's names."""
        self.load_state_dict({torchvision_key(key): value for key, value in state_dict.items()})

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the levels of the pyramid."""
        return list(self.backbone(images).values())

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Level]]:
        levels = self.features(images)
        objectness, deltas = self.rpn.head(levels)
        return levels, list(zip(objectness, deltas, strict=True))

    def propose(self, levels: list[Level], anchors: list[Tensor]) -> list[Tensor]:
        """Return each picture's boxes, as torchvision's `forward` computes them after its head.

        ``anchors`` has [K, 4] xyxy in pixels for each picture.
        """
        objectness, deltas = _flat(levels)
        boxes = self.rpn.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)
        counts = [level[0][0].numel() for level in levels]
        return self.rpn.filter_proposals(boxes, objectness, self.image_sizes, counts)[0]

    def loss(self, levels: list[Level], anchors: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Match, sample and return the loss. torchvision's `forward` would also make proposals."""
        labels, matched = self.rpn.assign_targets_to_anchors(
            anchors, [{"boxes": of_picture} for of_picture in boxes]
        )
        targets = self.rpn.box_coder.encode(matched, anchors)
        objectness, deltas = _flat(levels)
        return torch.stack(self.rpn.compute_loss(objectness, deltas, labels, targets)).sum()


def _flat(levels: list[Level]) -> tuple[Tensor, Tensor]:
    """Return float32 logits [B * K, 1] and deltas [B * K, 4] in the order of the anchors."""
    objectness, deltas = zip(*levels, strict=True)
    return concat_box_prediction_layers(
        [level.float() for level in objectness], [level.float() for level in deltas]
    )
