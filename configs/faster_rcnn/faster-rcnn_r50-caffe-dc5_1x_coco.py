"""Faster R-CNN with ResNet-50 in caffe style and a dilated last stage (DC5), 12 epochs.

Its only level has stride 16 and 2048 channels. Published box AP: 37.2.

rpn-jax train faster-rcnn_r50-caffe-dc5_1x_coco --data.root data/coco --workdir runs/faster_dc5_1x
"""

from rpn_jax.config import RoIHeadConfig, load_config, replace

BASE = load_config("faster-rcnn_r50-caffe_c4-1x_coco")
CONFIG = replace(
    BASE,
    name="faster-rcnn_r50-caffe-dc5_1x_coco",
    model=replace(
        BASE.model,
        backbone=replace(BASE.model.backbone, num_stages=4, dilate_last_stage=True),
        rpn=replace(BASE.model.rpn, channels=2048),
        roi=RoIHeadConfig(),
    ),
    rpn_loss=replace(BASE.rpn_loss, inside_only=True),
)
