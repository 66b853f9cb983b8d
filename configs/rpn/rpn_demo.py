"""A small RPN for synthetic pictures. It needs no download and trains in minutes on a CPU.

The backbone is a ResNet-18 with group norm and three stages. The pictures have 128x96 pixels, and
the anchors 16 to 181 pixels in two sizes an octave. A picture has only a few boxes, so that 64
sampled anchors instead of 256 give the positive ones more weight. The run is short: small batches
give it more steps, and it is evaluated with the average of the weights over the last steps.

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
        scale=(128, 96),
        batch_size=2,
    ),
    optim=replace(
        BASE.optim,
        learning_rate=0.02,
        warmup_steps=50,
        decay_epochs=(2,),
        decay_factor=0.2,
        base_batch_size=2,
        clip_norm=5.0,
    ),
    train=replace(BASE.train, epochs=3, ema_decay=0.98),
)
