"""A small network on pictures drawn by code: no download, minutes on a CPU.

Three stages of a ResNet-18 with group norm and a narrow pyramid; anchors of two sizes an octave,
16 to 181 pixels, for pictures of 160x128; 64 samples a picture, which weigh its few boxes more.

rpn-jax demo --workdir runs/demo
"""

from rpn_jax.config import AnchorConfig, RPNHeadConfig, load_config, replace

BASE = load_config("rpn_r18_fpn_gn_small")
CONFIG = replace(
    BASE,
    name="rpn_demo",
    model=replace(
        BASE.model,
        backbone=replace(BASE.model.backbone, num_stages=3),
        neck_channels=64,
        rpn=RPNHeadConfig(
            channels=64, anchors=AnchorConfig(strides=(4, 8, 16, 32), scales=(4.0, 5.66))
        ),
    ),
    rpn_loss=replace(BASE.rpn_loss, samples_per_image=64),
    data=replace(
        BASE.data,
        dataset="shapes",
        eval_split="eval",
        scale=(160, 128),
        buckets=((128, 160), (160, 128)),
    ),
    optim=replace(
        BASE.optim, learning_rate=0.02, warmup_steps=50, decay_epochs=(2,), clip_norm=5.0
    ),
    train=replace(BASE.train, epochs=3),
)
