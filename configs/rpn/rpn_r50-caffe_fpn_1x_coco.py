"""ResNet-50 in caffe style, FPN, 12 epochs. Published AR1000: 58.7.

rpn-jax train rpn_r50-caffe_fpn_1x_coco --data.root data/coco --workdir runs/r50-caffe_fpn_1x
"""

from rpn_jax.config import PixelConfig, load_config, replace

BASE = load_config("rpn_r50_fpn_1x_coco")
CONFIG = replace(
    BASE,
    name="rpn_r50-caffe_fpn_1x_coco",
    model=replace(
        BASE.model,
        backbone=replace(BASE.model.backbone, style="caffe", train_norm=False),
    ),
    pixels=PixelConfig(order="bgr", mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0)),
)
