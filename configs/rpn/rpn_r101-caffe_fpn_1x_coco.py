"""ResNet-101 in caffe style, FPN, 12 epochs. Published AR1000: 60.0.

rpn-jax train rpn_r101-caffe_fpn_1x_coco --data.root data/coco --workdir runs/r101-caffe_fpn_1x
"""

from rpn_jax.config import load_config, replace

BASE = load_config("rpn_r50-caffe_fpn_1x_coco")
CONFIG = replace(
    BASE,
    name="rpn_r101-caffe_fpn_1x_coco",
    model=replace(BASE.model, backbone=replace(BASE.model.backbone, depth=101)),
)
