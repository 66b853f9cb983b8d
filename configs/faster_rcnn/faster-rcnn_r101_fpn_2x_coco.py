"""Faster R-CNN with ResNet-101 and FPN, 24 epochs. Published box AP: 39.8.

rpn-jax train faster-rcnn_r101_fpn_2x_coco --data.root data/coco --workdir runs/coco
"""

from rpn_jax.config import RoIHeadConfig, load_config, replace

BASE = load_config("rpn_r101_fpn_2x_coco")
CONFIG = replace(
    BASE,
    name="faster-rcnn_r101_fpn_2x_coco",
    model=replace(BASE.model, roi=RoIHeadConfig()),
    rpn_proposals=replace(BASE.rpn_proposals, nms_pre=1000),
)
