"""ResNet-18 with group norm, FPN, pictures of at most 320x240. It trains from scratch on a CPU.

rpn-jax train rpn_r18_fpn_gn_small --data.root examples/bccd --workdir runs/bccd
"""

from rpn_jax.config import BackboneConfig, load_config, replace

BASE = load_config("rpn_r50_fpn_1x_coco")
CONFIG = replace(
    BASE,
    name="rpn_r18_fpn_gn_small",
    model=replace(BASE.model, backbone=BackboneConfig(depth=18, norm="group", frozen_stages=-1)),
    data=replace(
        BASE.data,
        train_split="train",
        eval_split="test",
        scale=(320, 240),
        batch_size=4,
    ),
    optim=replace(BASE.optim, learning_rate=0.01, warmup_steps=100, base_batch_size=4),
)
