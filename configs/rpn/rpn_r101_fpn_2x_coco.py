"""ResNet-101, FPN, 24 epochs. Published AR1000: 60.2.

rpn-jax train rpn_r101_fpn_2x_coco --data.root data/coco --workdir runs/r101_fpn_2x
"""

from rpn_jax.config import load_config, replace

BASE = load_config("rpn_r50_fpn_2x_coco")
CONFIG = replace(
    BASE,
    name="rpn_r101_fpn_2x_coco",
    model=replace(BASE.model, backbone=replace(BASE.model.backbone, depth=101)),
)
