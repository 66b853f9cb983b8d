"""ResNet-18 with group norm, FPN, on pictures drawn by code: no download, minutes on a CPU.

rpn-jax demo --workdir runs/demo
"""

from rpn_jax.config import load_config, replace

BASE = load_config("rpn_r18_fpn_gn_small")
CONFIG = replace(
    BASE,
    name="rpn_demo",
    data=replace(
        BASE.data,
        dataset="shapes",
        eval_split="eval",
        scale=(160, 128),
        buckets=((128, 160), (160, 128)),
    ),
    train=replace(BASE.train, epochs=6),
)
