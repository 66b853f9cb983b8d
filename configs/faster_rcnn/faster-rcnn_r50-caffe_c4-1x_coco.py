"""Faster R-CNN with ResNet-50 in caffe style and one level of stride 16 (C4), 12 epochs.

The second stage applies the ResNet's last stage to each box. Published box AP: 35.6.

rpn-jax train faster-rcnn_r50-caffe_c4-1x_coco --data.root data/coco --workdir runs/faster_c4_1x
"""

from rpn_jax.config import RoIHeadConfig, load_config, replace

BASE = load_config("rpn_r50-caffe-c4_1x_coco")
CONFIG = replace(
    BASE,
    name="faster-rcnn_r50-caffe_c4-1x_coco",
    model=replace(BASE.model, roi=RoIHeadConfig(head="layer4")),
    rpn_proposals=replace(BASE.rpn_proposals, nms_pre=6000, max_proposals=1000),
    roi_loss=replace(BASE.roi_loss, nms_pre=12000, max_proposals=2000),
)
