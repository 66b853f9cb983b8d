"""Faster R-CNN with a dilated ResNet-50 (DC5), 36 epochs at six short sides.

Published box AP: 38.7.

rpn-jax train faster-rcnn_r50-caffe-dc5_ms-3x_coco --data.root data/coco --workdir runs/coco
"""

from rpn_jax.config import load_config, replace

BASE = load_config("faster-rcnn_r50-caffe-dc5_ms-1x_coco")
CONFIG = replace(
    BASE,
    name="faster-rcnn_r50-caffe-dc5_ms-3x_coco",
    optim=replace(BASE.optim, decay_epochs=(28, 34)),
    train=replace(BASE.train, epochs=36),
)
