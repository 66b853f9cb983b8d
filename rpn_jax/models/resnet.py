"""ResNet (He et al. 2015) and ResNeXt (Xie et al. 2016) as backbones of a detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import flax.linen as nn
from jax import lax

from rpn_jax.config import BackboneConfig, Precision
from rpn_jax.models.layers import ConvNorm, LayerOptions, conv_norm
from rpn_jax.ops.activations import relu, relu_of_sum
from rpn_jax.ops.pooling import max_pool_3x3_stride_2

if TYPE_CHECKING:
    from jaxtyping import Array, Float

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Number of residual blocks in each stage, by depth."""

BOTTLENECK_EXPANSION = 4
STEM_FEATURES = 64
STEM = 0
"""The stem's number among the stages."""
NORM_OF = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3", "0": "1"}
"""Name of the batch norm that follows each convolution, both named as in PyTorch."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; used at depths 18 and 34."""

    planes: int
    stride: int
    options: LayerOptions

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        """Return the block's output."""
        bn = self.options.norm_prefix
        first = ConvNorm("conv1", f"{bn}1", self.planes, 3, stride=self.stride)
        last = ConvNorm("conv2", f"{bn}2", self.planes, 3, scale_init=nn.initializers.zeros)
        y = relu(conv_norm(x, first, self.options))
        y = conv_norm(y, last, self.options)
        if y.shape != x.shape:
            x = Downsample(self.planes, self.stride, self.options, name="downsample")(x)
        return relu_of_sum(y, x)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; used at depths 50 and more."""

    planes: int
    stride: int
    dilation: int
    config: BackboneConfig
    options: LayerOptions

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        """Return the block's output."""
        bn, groups = self.options.norm_prefix, self.config.groups
        width = int(self.planes * self.config.base_width / 64) * groups
        features = self.planes * BOTTLENECK_EXPANSION
        caffe = self.config.style == "caffe"
        stride1, stride2 = (self.stride, 1) if caffe else (1, self.stride)
        reduce = ConvNorm("conv1", f"{bn}1", width, 1, stride=stride1)
        spatial = ConvNorm(
            "conv2", f"{bn}2", width, 3, stride=stride2, dilation=self.dilation, groups=groups
        )
        expand = ConvNorm("conv3", f"{bn}3", features, 1, scale_init=nn.initializers.zeros)
        y = relu(conv_norm(x, reduce, self.options))
        y = relu(conv_norm(y, spatial, self.options))
        y = conv_norm(y, expand, self.options)
        if y.shape != x.shape:
            x = Downsample(features, self.stride, self.options, name="downsample")(x)
        return relu_of_sum(y, x)


class Downsample(nn.Module):
    """The 1x1 projection of a shortcut whose shape changes."""

    features: int
    stride: int
    options: LayerOptions

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        """Return the projected shortcut."""
        projection = ConvNorm("0", "1", self.features, 1, stride=self.stride)
        return conv_norm(x, projection, self.options)


class Stage(nn.Module):
    """Residual blocks of one resolution. The first block has the stride."""

    index: int
    config: BackboneConfig
    options: LayerOptions

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        """Return the output of the last block."""
        config = self.config
        planes = STEM_FEATURES * 2**self.index
        is_dilated = config.dilate_last_stage and self.index == config.num_stages - 1
        for block in range(BLOCKS[config.depth][self.index]):
            stride = 2 if block == 0 and self.index > 0 and not is_dilated else 1
            if config.depth < 50:
                x = BasicBlock(planes, stride, self.options, name=str(block))(x)
            else:
                dilation = 2 if is_dilated else 1
                x = Bottleneck(planes, stride, dilation, config, self.options, name=str(block))(x)
        return x


class ResNet(nn.Module):
    """Stem and residual stages: a `rpn_jax.models.backbone.Backbone`.

    Gradients do not flow into frozen stages.
    """

    config: BackboneConfig
    precision: Precision
    axis_name: str | None = None
    """The `pmap` axis over which batch norm shares its statistics, if any."""
    folded: bool = False
    """Whether `rpn_jax.models.folding` has folded the norms into the weights."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the stages: 4, 8, 16, 32, or 4, 8, 16, 16 if the last stage is dilated."""
        strides = [4 * 2**stage for stage in range(self.config.num_stages)]
        if self.config.dilate_last_stage:
            strides[-1] = strides[-2]
        return tuple(strides)

    @property
    def norm_of(self) -> Mapping[str, str]:
        """Name of the batch norm that follows each convolution."""
        return NORM_OF

    def trains(self, path: tuple[str, ...]) -> bool:
        """Return whether a parameter trains: not in frozen stages, and a norm's if ``train_norm``.

        The stem counts as stage 0.
        """
        stage = int(path[0].removeprefix("layer")) if path[0].startswith("layer") else STEM
        is_norm = path[-1] in ("scale", "bias")  # These convolutions have no bias.
        return stage > self.config.frozen_stages and (self.config.train_norm or not is_norm)

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], train: bool = False
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        """Return the features of every stage."""
        config = self.config
        options = [
            LayerOptions(
                norm="folded" if self.folded and config.norm != "group" else config.norm,
                train_norm=config.train_norm,
                update_statistics=train and stage > config.frozen_stages,
                axis_name=self.axis_name,
                precision=self.precision,
            )
            for stage in range(config.num_stages + 1)
        ]
        stem = ConvNorm("conv1", f"{options[STEM].norm_prefix}1", STEM_FEATURES, 7, stride=2)
        x = max_pool_3x3_stride_2(relu(conv_norm(images, stem, options[STEM])))
        if config.frozen_stages >= STEM:
            x = lax.stop_gradient(x)
        features = []
        for stage in range(1, config.num_stages + 1):
            x = Stage(stage - 1, config, options[stage], name=f"layer{stage}")(x)
            if stage <= config.frozen_stages:
                x = lax.stop_gradient(x)
            features.append(x)
        return tuple(features)
