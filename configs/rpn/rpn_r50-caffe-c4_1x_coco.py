"""ResNet-50 in caffe style, one level of stride 16 (C4), 12 epochs. Nothing is published for it.

rpn-jax train rpn_r50-caffe-c4_1x_coco --data.root data/coco --workdir runs/r50-caffe-c4_1x
"""

from rpn_jax.config import AnchorConfig, RPNHeadConfig, load_config, replace

BASE = load_config("rpn_r50-caffe_fpn_1x_coco")
CONFIG = replace(
    BASE,
    name="rpn_r50-caffe-c4_1x_coco",
    model=replace(
        BASE.model,
        backbone=replace(BASE.model.backbone, num_stages=3),
        neck="none",
        rpn=RPNHeadConfig(
            channels=1024, anchors=AnchorConfig(strides=(16,), scales=(2.0, 4.0, 8.0, 16.0, 32.0))
        ),
    ),
    rpn_proposals=replace(BASE.rpn_proposals, nms_pre=12000, max_proposals=2000),
)
