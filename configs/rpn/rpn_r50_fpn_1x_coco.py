"""ResNet-50, FPN, 12 epochs. Published AR1000: 58.2.

rpn-jax train rpn_r50_fpn_1x_coco --data.root data/coco --workdir runs/r50_fpn_1x
"""

from rpn_jax.config import Config

CONFIG = Config(name="rpn_r50_fpn_1x_coco")
