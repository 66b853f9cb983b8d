"""Faster R-CNN with a dilated ResNet-50 (DC5), 12 epochs at six short sides.

Published box AP: 37.4.

rpn-jax train faster-rcnn_r50-caffe-dc5_ms-1x_coco --data.root data/coco --workdir runs/coco
"""

from rpn_jax.config import load_config, replace

BASE = load_config("faster-rcnn_r50-caffe-dc5_1x_coco")
CONFIG = replace(
    BASE,
    name="faster-rcnn_r50-caffe-dc5_ms-1x_coco",
    data=replace(BASE.data, short_sides=(640, 672, 704, 736, 768, 800)),
)
