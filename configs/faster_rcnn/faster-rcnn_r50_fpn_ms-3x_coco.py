"""Faster R-CNN with ResNet-50 and FPN, 36 epochs at short sides from 640 to 800 pixels.

Published box AP: 40.3. The reference repeats the dataset three times in each of 12 epochs, and
evaluates after each of these.

rpn-jax train faster-rcnn_r50_fpn_ms-3x_coco --data.root data/coco --workdir runs/coco
"""

from rpn_jax.config import load_config, replace

BASE = load_config("faster-rcnn_r50_fpn_1x_coco")
CONFIG = replace(
    BASE,
    name="faster-rcnn_r50_fpn_ms-3x_coco",
    data=replace(BASE.data, short_side_range=(640, 800)),
    optim=replace(BASE.optim, decay_epochs=(27, 33)),
    train=replace(BASE.train, epochs=36, eval_every=3),
)
