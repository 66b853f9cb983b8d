"""Faster R-CNN with ResNet-101 and FPN, 12 epochs. Published box AP: 39.4.

rpn-jax train faster-rcnn_r101_fpn_1x_coco --data.root data/coco --workdir runs/coco
"""

from rpn_jax.config import RoIHeadConfig, load_config, replace

BASE = load_config("rpn_r101_fpn_1x_coco")
CONFIG = replace(
    BASE,
    name="faster-rcnn_r101_fpn_1x_coco",
    model=replace(BASE.model, roi=RoIHeadConfig()),
    rpn_proposals=replace(BASE.rpn_proposals, nms_pre=1000),
)
