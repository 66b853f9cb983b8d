"""Faster R-CNN with ResNet-18, group norm and FPN, for pictures of at most 320x240.

It trains from scratch on a CPU.

rpn-jax train faster-rcnn_r18_fpn_gn_small --data.root examples/bccd --workdir runs/faster_small
"""

from rpn_jax.config import RoIHeadConfig, load_config, replace

BASE = load_config("rpn_r18_fpn_gn_small")
CONFIG = replace(
    BASE,
    name="faster-rcnn_r18_fpn_gn_small",
    model=replace(BASE.model, roi=RoIHeadConfig()),
    rpn_proposals=replace(BASE.rpn_proposals, nms_pre=1000),
    roi_loss=replace(BASE.roi_loss, samples_per_image=128),
    optim=replace(BASE.optim, clip_norm=10.0),
)
