"""ResNeXt-101 64x4d, FPN, 12 epochs. Published AR1000: 61.0.

rpn-jax train rpn_x101-64x4d_fpn_1x_coco --data.root data/coco --workdir runs/x101-64x4d_fpn_1x
"""

from rpn_jax.config import load_config, replace

BASE = load_config("rpn_r50_fpn_1x_coco")
CONFIG = replace(
    BASE,
    name="rpn_x101-64x4d_fpn_1x_coco",
    model=replace(
        BASE.model,
        backbone=replace(BASE.model.backbone, depth=101, groups=64, base_width=4),
    ),
)
