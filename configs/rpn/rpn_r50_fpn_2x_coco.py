"""ResNet-50, FPN, 24 epochs. Published AR1000: 58.6.

rpn-jax train rpn_r50_fpn_2x_coco --data.root data/coco --workdir runs/r50_fpn_2x
"""

from rpn_jax.config import load_config, replace

BASE = load_config("rpn_r50_fpn_1x_coco")
CONFIG = replace(
    BASE,
    name="rpn_r50_fpn_2x_coco",
    optim=replace(BASE.optim, decay_epochs=(16, 22)),
    train=replace(BASE.train, epochs=24),
)
