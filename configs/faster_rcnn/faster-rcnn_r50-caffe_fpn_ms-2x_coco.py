"""Faster R-CNN with ResNet-50 in caffe style and FPN, 24 epochs at six short sides.

Published box AP: 39.7.

rpn-jax train faster-rcnn_r50-caffe_fpn_ms-2x_coco --data.root data/coco --workdir runs/coco
"""

from rpn_jax.config import load_config, replace

BASE = load_config("faster-rcnn_r50-caffe_fpn_ms-1x_coco")
CONFIG = replace(
    BASE,
    name="faster-rcnn_r50-caffe_fpn_ms-2x_coco",
    optim=replace(BASE.optim, decay_epochs=(16, 23)),
    train=replace(BASE.train, epochs=24),
)
