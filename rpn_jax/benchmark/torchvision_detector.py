"""torchvision's Faster R-CNN with ResNet-50-FPN, with the thresholds of a config.

RoIAlign is torchvision's operation in the reference's form: aligned, with as many samples as a box
needs. torchvision's own model shifts boxes by half a pixel and takes 2x2 samples in each bin.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops import roi_align

from rpn_jax.benchmark.torchvision_rpn import TorchvisionRPN
from rpn_jax.config import Config

RENAMES = (
    (r"^roi_head\.bbox_head\.shared_fcs\.0\.", "roi_heads.box_head.fc6."),
    (r"^roi_head\.bbox_head\.shared_fcs\.1\.", "roi_heads.box_head.fc7."),
    (r"^roi_head\.bbox_head\.fc_cls\.", "roi_heads.box_predictor.cls_score."),
    (r"^roi_head\.bbox_head\.fc_reg\.", "roi_heads.box_predictor.bbox_pred."),
)
"""Patterns that change MMDetection's parameter names to torchvision's."""

FINEST_SCALE = 56
"""Boxes with sides below twice this go to the finest level (Lin et al. 2016)."""


class TorchvisionFasterRCNN(TorchvisionRPN):
    """Maps normalised pictures [B, 3, H, W] to features, and to the outputs of every level."""

    def __init__(self, config: Config, image_sizes: list[tuple[int, int]]) -> None:
        """Build the network for a batch. All pictures of ``image_sizes`` must fill the canvas."""
        super().__init__(config, image_sizes)
        head, loss, detections = config.model.roi, config.roi_loss, config.roi_detections
        assert head is not None
        self.strides = config.model.rpn.anchors.strides[:-1]
        self.pooled_size = head.pooled_size
        in_features = config.model.neck_channels * head.pooled_size**2
        self.roi_heads = RoIHeads(
            nn.Identity(),  # instead of a RoI pooler, which only `forward` uses
            TwoMLPHead(in_features, head.channels),
            FastRCNNPredictor(head.channels, head.num_classes + 1),
            fg_iou_thresh=loss.positive_iou,
            bg_iou_thresh=loss.positive_iou,
            batch_size_per_image=loss.samples_per_image,
            positive_fraction=loss.positive_fraction,
            bbox_reg_weights=None,
            score_thresh=detections.min_score,
            nms_thresh=detections.nms_iou,
            detections_per_img=detections.max_detections,
        )

    def load(self, state_dict: dict[str, Tensor]) -> None:
        """Load weights with MMDetection's names. torchvision's background is class 0."""
        weights = dict(state_dict)
        classes = len(weights["roi_head.bbox_head.fc_cls.bias"]) - 1
        for kind in ("weight", "bias"):
            cls, reg = (f"roi_head.bbox_head.{name}.{kind}" for name in ("fc_cls", "fc_reg"))
            weights[cls] = weights[cls].roll(1, dims=0)
            background = torch.zeros_like(weights[reg][: len(weights[reg]) // classes])
            weights[reg] = torch.cat([background, weights[reg]])
        for pattern, replacement in RENAMES:
            weights = {re.sub(pattern, replacement, key): w for key, w in weights.items()}
        super().load(weights)

    def pool(self, levels: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Return the pooled features [R, C, P, P] of all pictures' boxes, one after the other."""
        together = torch.cat(boxes)
        pictures = torch.cat(
            [box.new_full((len(box), 1), index) for index, box in enumerate(boxes)]
        )
        rois = torch.cat([pictures, together], dim=1)
        side = ((together[:, 2:] - together[:, :2]).prod(dim=1)).sqrt()
        level_of = torch.log2(side / FINEST_SCALE + 1e-6).floor()
        level_of = level_of.clamp(0, len(self.strides) - 1).long()
        channels = levels[0].shape[1]
        pooled = levels[0].new_zeros(len(rois), channels, self.pooled_size, self.pooled_size)
        for index, (level, stride) in enumerate(zip(levels, self.strides, strict=False)):
            of_level = torch.where(level_of == index)[0]
            # torchvision has no bfloat16 RoIAlign.
            values = roi_align(
                level.float(), rois[of_level], self.pooled_size, 1 / stride, 0, aligned=True
            )
            pooled = pooled.index_put((of_level,), values.to(pooled.dtype))
        return pooled

    def box_head(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and deltas, with the background as class 0."""
        return self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))

    def detect(
        self, logits: Tensor, deltas: Tensor, boxes: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return each picture's boxes, scores, and labels from 1."""
        return self.roi_heads.postprocess_detections(
            logits.float(), deltas.float(), boxes, self.image_sizes
        )

    def second_stage_loss(
        self, levels: list[Tensor], proposals: list[Tensor], boxes: list[Tensor]
    ) -> Tensor:
        """Match, sample and return the loss of the second stage. All objects are of class 1."""
        targets = [
            {"boxes": b, "labels": torch.ones(len(b), dtype=torch.int64, device=b.device)}
            for b in boxes
        ]
        sampled, _, labels, deltas = self.roi_heads.select_training_samples(proposals, targets)
        outputs = self.box_head(self.pool(levels, sampled))
        return torch.stack(fastrcnn_loss(*(out.float() for out in outputs), labels, deltas)).sum()
