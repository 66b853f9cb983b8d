"""A config of your own: Faster R-CNN for the blood cells in ``examples/bccd``.

Run this in the folder that contains ``examples/``.

rpn-jax train examples/own_config.py --workdir runs/cells
"""

from rpn_jax.config import load_config, replace

BASE = load_config("faster-rcnn_r18_fpn_gn_small")
CONFIG = replace(
    BASE,
    name="cells",
    data=replace(BASE.data, root="examples/bccd", photometric_jitter=True),
    train=replace(BASE.train, ema_decay=0.99),
)
