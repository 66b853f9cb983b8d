"""Faster R-CNN with ResNet-50 and one level (C4), 12 epochs at six short sides.

Published box AP: 35.9.

rpn-jax train faster-rcnn_r50-caffe-c4_ms-1x_coco --data.root data/coco --workdir runs/coco
"""

from rpn_jax.config import load_config, replace

BASE = load_config("faster-rcnn_r50-caffe_c4-1x_coco")
CONFIG = replace(
    BASE,
    name="faster-rcnn_r50-caffe-c4_ms-1x_coco",
    data=replace(BASE.data, short_sides=(640, 672, 704, 736, 768, 800)),
)
