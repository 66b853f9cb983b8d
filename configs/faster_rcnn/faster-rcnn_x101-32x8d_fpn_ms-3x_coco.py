"""Faster R-CNN with ResNeXt-101 32x8d and FPN, 36 epochs at short sides of 640 to 800.

Published box AP: 42.4. The backbone comes from Caffe2, which explains its pixels.

rpn-jax train faster-rcnn_x101-32x8d_fpn_ms-3x_coco --data.root data/coco --workdir runs/coco
"""

from rpn_jax.config import PixelConfig, load_config, replace

BASE = load_config("faster-rcnn_x101-32x4d_fpn_ms-3x_coco")
CONFIG = replace(
    BASE,
    name="faster-rcnn_x101-32x8d_fpn_ms-3x_coco",
    model=replace(
        BASE.model, backbone=replace(BASE.model.backbone, base_width=8, train_norm=False)
    ),
    pixels=PixelConfig(order="bgr", mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395)),
)
