"""The head of Fast R-CNN (Girshick 2015): classes and deltas of boxes from their pooled features.

The module names are those of the reference: ``shared_head`` is the ResNet's last stage (head
'layer4'), ``bbox_head`` holds the fully connected layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rpn_jax.config import BackboneConfig, Precision, RoIHeadConfig
from rpn_jax.models.layers import LayerOptions, xavier_uniform
from rpn_jax.models.resnet import Stage
from rpn_jax.ops.activations import relu
from rpn_jax.ops.precision import lax_precision, matmul
from rpn_jax.ops.roi_align import roi_align
from rpn_jax.structures import RoIOutputs

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Levels = tuple[Float[Array, "B _ _ C"], ...]

OUTPUT_LAYERS = ("fc_cls", "fc_reg")
"""Names of the output layers. Their biases are added in float32 in every precision."""
FULLY_CONNECTED = "shared_fcs"
"""Name of the hidden fully connected layers."""
LAYER4 = 3
"""Index of the stage ``layer4`` in a ResNet."""
LAYER4_STRIDE = 2


class RoIHead(nn.Module):
    """RoIAlign, hidden layers, and the outputs of the second stage."""

    config: RoIHeadConfig
    backbone: BackboneConfig
    """Kind of ResNet that ``layer4`` belongs to."""
    strides: tuple[int, ...]
    """Pixels between the cells of each level."""
    precision: Precision
    folded: bool = False
    """Whether `rpn_jax.models.folding` has folded the norms of ``layer4`` into the weights."""

    def setup(self) -> None:
        hidden_layers = 0
        if self.config.head == "layer4":
            self.shared_head = Layer4(self.backbone, self.precision, self.folded)
        else:
            hidden_layers = 2
        self.bbox_head = BoxHead(
            self.config.num_classes, hidden_layers, self.config.channels, self.precision
        )

    @property
    def pooled_size(self) -> int:
        """Bins along each side of a box. Head 'layer4' begins with a convolution of stride 2."""
        stride = LAYER4_STRIDE if self.config.head == "layer4" else 1
        return stride * self.config.pooled_size

    def __call__(self, levels: Levels, boxes_xyxy: Float[Array, "B N 4"]) -> RoIOutputs:
        """Return classes and deltas of boxes in resized pixels. Boxes may be padded with zeros."""
        return self.outputs(self.pool(levels, boxes_xyxy))

    def pool(self, levels: Levels, boxes_xyxy: Float[Array, "B N 4"]) -> Float[Array, "B N P P C"]:
        """Return the pooled features of boxes."""
        precision = lax_precision(self.precision)
        return roi_align(levels, boxes_xyxy, self.strides, self.pooled_size, precision)

    def outputs(self, pooled: Float[Array, "B N P P C"]) -> RoIOutputs:
        """Return classes and deltas from pooled features."""
        batch, count = pooled.shape[:2]
        features = pooled.reshape(batch * count, *pooled.shape[2:])
        if self.config.head == "layer4":
            features = jnp.mean(self.shared_head(features).astype(jnp.float32), axis=(1, 2))
        logits, deltas = self.bbox_head(features)
        return RoIOutputs(logits.reshape(batch, count, -1), deltas.reshape(batch, count, -1, 4))


class Layer4(nn.Module):
    """The last stage of a ResNet, applied to the pooled features of each box."""

    backbone: BackboneConfig
    precision: Precision
    folded: bool

    @nn.compact
    def __call__(self, pooled: Float[Array, "R Q Q C"]) -> Float[Array, "R P P O"]:
        """Return the stage's output, with half the side."""
        config = self.backbone
        options = LayerOptions(
            norm="folded" if self.folded and config.norm != "group" else config.norm,
            train_norm=config.train_norm,
            update_statistics=False,
            axis_name=None,
            precision=self.precision,
        )
        return Stage(LAYER4, config, options, name="layer4")(pooled)


class BoxHead(nn.Module):
    """Hidden fully connected layers with ReLU, then one layer each for the classes and deltas."""

    classes: int
    hidden_layers: int
    hidden_features: int
    precision: Precision

    @nn.compact
    def __call__(
        self, features: Float[Array, "R *features"]
    ) -> tuple[Float[Array, "R {self.classes+1}"], Float[Array, "R {4*self.classes}"]]:
        """Return float32 logits and deltas."""
        if self.hidden_layers:
            sizes = (self.hidden_features,) * self.hidden_layers
            features = SharedLayers(sizes, self.precision, name=FULLY_CONNECTED)(features)
        in_features = features.shape[-1]
        kernel_cls, bias_cls = LinearWeights(
            (in_features,), self.classes + 1, nn.initializers.normal(0.01), name="fc_cls"
        )()
        kernel_reg, bias_reg = LinearWeights(
            (in_features,), 4 * self.classes, nn.initializers.normal(0.001), name="fc_reg"
        )()
        # One product for both outputs reads the features once.
        kernel = jnp.concatenate([kernel_cls, kernel_reg], axis=-1)
        both = matmul(features, kernel, self.precision, jnp.float32)
        both = both + jnp.concatenate([bias_cls, bias_reg])
        return both[:, : self.classes + 1], both[:, self.classes + 1 :]


class SharedLayers(nn.Module):
    """Fully connected layers, each followed by a ReLU."""

    sizes: Sequence[int]
    precision: Precision

    @nn.compact
    def __call__(self, features: Float[Array, "R *features"]) -> Float[Array, "R F"]:
        """Return the output of the last layer. The first one reads whole pooled maps."""
        for index, size in enumerate(self.sizes):
            kernel, bias = LinearWeights(
                features.shape[1:], size, fully_connected_xavier, name=str(index)
            )()
            flat = features.reshape(len(features), -1)
            y = matmul(flat, kernel.reshape(-1, size), self.precision)
            features = relu(y + bias.astype(y.dtype))
        return features


class LinearWeights(nn.Module):
    """The weights of a fully connected layer.

    The kernel of a layer that reads a map [P, P, C] has the shape [P, P, C, O], like that of a
    convolution over the whole map. PyTorch stores its columns in the order C, P, P.
    """

    in_shape: tuple[int, ...]
    features: int
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "*in_shape O"], Float[Array, " O"]]:
        """Return kernel and bias."""
        shape = (*self.in_shape, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)


def fully_connected_xavier(
    rng: jax.Array, shape: tuple[int, ...], dtype: DTypeLike
) -> Float[Array, "*in_shape O"]:
    """Return Xavier uniform weights (Glorot and Bengio 2010) of a layer that reads a whole map."""
    flat_shape = (math.prod(shape[:-1]), shape[-1])
    return xavier_uniform(rng, flat_shape, dtype).reshape(shape)
