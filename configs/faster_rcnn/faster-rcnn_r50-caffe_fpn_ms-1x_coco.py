"""Faster R-CNN with ResNet-50 in caffe style and FPN, 12 epochs at six short sides.

rpn-jax train faster-rcnn_r50-caffe_fpn_ms-1x_coco --data.root data/coco --workdir runs/coco
"""

from rpn_jax.config import load_config, replace

BASE = load_config("faster-rcnn_r50-caffe_fpn_1x_coco")
CONFIG = replace(
    BASE,
    name="faster-rcnn_r50-caffe_fpn_ms-1x_coco",
    data=replace(BASE.data, short_sides=(640, 672, 704, 736, 768, 800)),
)
