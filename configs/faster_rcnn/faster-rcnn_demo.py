"""A small Faster R-CNN for synthetic pictures. It trains in minutes on a CPU.

The first stage is that of rpn_demo. The kinds of shapes are the classes.

rpn-jax train faster-rcnn_demo --workdir runs/faster_demo
"""

from rpn_jax.config import RoIHeadConfig, load_config, replace

SHAPES = ("disc", "ellipse", "ring", "triangle", "square", "bar", "hexagon", "star", "cross")
BASE = load_config("rpn_demo")
CONFIG = replace(
    BASE,
    name="faster-rcnn_demo",
    model=replace(
        BASE.model,
        roi=RoIHeadConfig(num_classes=len(SHAPES), class_names=SHAPES, channels=256),
    ),
    rpn_proposals=replace(BASE.rpn_proposals, nms_pre=500, max_proposals=300),
    roi_loss=replace(BASE.roi_loss, nms_pre=500, max_proposals=300, samples_per_image=64),
)
