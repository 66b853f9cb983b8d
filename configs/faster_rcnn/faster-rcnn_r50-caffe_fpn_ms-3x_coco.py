"""Faster R-CNN with ResNet-50 in caffe style and FPN, 36 epochs at short sides of 640 to 800.

Published box AP: 39.9.

rpn-jax train faster-rcnn_r50-caffe_fpn_ms-3x_coco --data.root data/coco --workdir runs/coco
"""

from rpn_jax.config import load_config, replace

BASE = load_config("faster-rcnn_r50-caffe_fpn_1x_coco")
SCHEDULE = load_config("faster-rcnn_r50_fpn_ms-3x_coco")
CONFIG = replace(
    BASE,
    name="faster-rcnn_r50-caffe_fpn_ms-3x_coco",
    data=SCHEDULE.data,
    optim=SCHEDULE.optim,
    train=SCHEDULE.train,
)
