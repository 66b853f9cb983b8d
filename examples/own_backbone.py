"""An RPN with a backbone of your own: a small ConvNeXt (Liu et al. 2022).

Run these in the folder that contains ``examples/``. All other commands work with it, too.

rpn-jax train examples/own_backbone.py --workdir runs/own
rpn-jax propose --weights runs/own examples/bccd/test/BloodImage_00007.jpg --out boxes
"""

import flax.linen as nn
import jax

from rpn_jax.config import load_config, replace


class SmallConvNeXt(nn.Module):
    """Three stages of blocks. Their strides are 4, 8 and 16 pixels."""

    channels: tuple[int, ...] = (32, 64, 128)
    dropout: float = 0.1

    strides = (4, 8, 16)
    """Pixels between the cells of each feature map."""
    norm_of = None
    """No norm with stored statistics follows a convolution."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
        """Map normalised pictures [B, H, W, 3] to three feature maps [B, h, w, channels]."""
        x = nn.Conv(self.channels[0], (4, 4), strides=4, name="stem")(images)
        features = []
        for stage, channels in enumerate(self.channels):
            if stage > 0:
                x = nn.Conv(channels, (2, 2), strides=2)(nn.LayerNorm()(x))
            for _ in range(2):
                x = x + self.block(x, train)
            features.append(nn.LayerNorm()(x))
        return tuple(features)

    def block(self, x: jax.Array, train: bool) -> jax.Array:
        """Return what a block adds to its input."""
        channels = x.shape[-1]
        y = nn.Conv(channels, (5, 5), feature_group_count=channels)(x)
        y = nn.gelu(nn.Dense(4 * channels)(nn.LayerNorm()(y)))
        return nn.Dropout(self.dropout, deterministic=not train)(nn.Dense(channels)(y))

    def trains(self, path: tuple[str, ...]) -> bool:
        """Train all parameters. ``path`` is, for example, ("stem", "kernel")."""
        return True


BASE = load_config("rpn_demo")  # its pictures, anchors and schedule
CONFIG = replace(
    BASE,
    name="own_backbone",
    model=replace(BASE.model, backbone_class="examples.own_backbone:SmallConvNeXt"),
)
