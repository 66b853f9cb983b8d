"""ResNet (He et al. 2015) and ResNeXt (Xie et al. 2016) as trunks of a detector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
from jax import lax

from rpn_jax.config import BackboneConfig, Precision
from rpn_jax.models.layers import NormOptions, conv_norm
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
"""Residual blocks of each stage, by depth."""

BOTTLENECK_EXPANSION = 4
STEM_FEATURES = 64


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; depths 18 and 34."""

    planes: int
    stride: int
    norm: NormOptions
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        norm, precision, bn = self.norm, self.precision, self.norm.prefix
        y = conv_norm(x, self.planes, 3, norm, precision, "conv1", f"{bn}1", self.stride)
        y = conv_norm(
            relu(y),
            self.planes,
            3,
            norm,
            precision,
            "conv2",
            f"{bn}2",
            scale_init=nn.initializers.zeros,
        )
        if y.shape != x.shape:
            x = Downsample(self.planes, self.stride, norm, precision, name="downsample")(x)
        return relu_of_sum(y, x)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; depths from 50."""

    planes: int
    stride: int
    config: BackboneConfig
    norm: NormOptions
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        norm, precision, bn = self.norm, self.precision, self.norm.prefix
        groups = self.config.groups
        width = int(self.planes * self.config.base_width / 64) * groups
        features = self.planes * BOTTLENECK_EXPANSION
        caffe = self.config.style == "caffe"
        stride1, stride2 = (self.stride, 1) if caffe else (1, self.stride)
        y = conv_norm(x, width, 1, norm, precision, "conv1", f"{bn}1", stride1)
        y = conv_norm(relu(y), width, 3, norm, precision, "conv2", f"{bn}2", stride2, groups)
        y = conv_norm(
            relu(y),
            features,
            1,
            norm,
            precision,
            "conv3",
            f"{bn}3",
            scale_init=nn.initializers.zeros,
        )
        if y.shape != x.shape:
            x = Downsample(features, self.stride, norm, precision, name="downsample")(x)
        return relu_of_sum(y, x)


class Downsample(nn.Module):
    """The 1x1 projection of a shortcut whose shape changes."""

    features: int
    stride: int
    norm: NormOptions
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        return conv_norm(x, self.features, 1, self.norm, self.precision, "0", "1", self.stride)


class Stage(nn.Module):
    """Residual blocks of one resolution; the first one strides."""

    index: int
    config: BackboneConfig
    norm: NormOptions
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        planes = STEM_FEATURES * 2**self.index
        for block in range(BLOCKS[self.config.depth][self.index]):
            stride = 2 if block == 0 and self.index > 0 else 1
            if self.config.depth < 50:
                x = BasicBlock(planes, stride, self.norm, self.precision, name=str(block))(x)
            else:
                x = Bottleneck(
                    planes, stride, self.config, self.norm, self.precision, name=str(block)
                )(x)
        return x


class ResNet(nn.Module):
    """Stem and residual stages. Gradients stop behind the frozen stages."""

    config: BackboneConfig
    precision: Precision
    axis_name: str | None = None
    folded: bool = False
    """Take weights with the norms in them, of `rpn_jax.models.folding`."""

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], train: bool = False
    ) -> tuple[Float[Array, "B h w C"], ...]:
        """Features of every stage, strides 4, 8, 16, 32, from normalised pictures."""
        config = self.config
        norms = [
            # A frozen stage keeps its statistics: stage 0 is the stem.
            NormOptions(
                "folded" if self.folded and config.norm != "group" else config.norm,
                config.train_norm,
                train and stage > config.frozen_stages,
                self.axis_name,
            )
            for stage in range(config.num_stages + 1)
        ]
        stem_norm = f"{norms[0].prefix}1"
        x = conv_norm(
            images, STEM_FEATURES, 7, norms[0], self.precision, "conv1", stem_norm, stride=2
        )
        x = max_pool_3x3_stride_2(relu(x))
        if config.frozen_stages >= 0:
            x = lax.stop_gradient(x)
        features = []
        for index in range(config.num_stages):
            name = f"layer{index + 1}"
            x = Stage(index, config, norms[index + 1], self.precision, name=name)(x)
            if index < config.frozen_stages:
                x = lax.stop_gradient(x)
            features.append(x)
        return tuple(features)
