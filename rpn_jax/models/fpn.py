"""Feature pyramid network (Lin et al. 2016), as MMDetection's FPN with one extra level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp

from rpn_jax.config import Precision
from rpn_jax.models.layers import ConvWeights, xavier_uniform
from rpn_jax.ops.convolution import convolve

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class FPN(nn.Module):
    """1x1 laterals, top-down sums and 3x3 outputs. P6 is every second pixel of P5."""

    features: int
    precision: Precision

    @nn.compact
    def __call__(
        self, stages: tuple[Float[Array, "B _ _ _"], ...]
    ) -> tuple[Float[Array, "B _ _ F"], ...]:
        """Return one level for each stage, and one with twice the stride of the last stage.

        The stride of each stage must be twice that of the one before.
        """
        laterals = LevelConvs(self.features, 1, self.precision, name="lateral_convs")(stages)
        sums = [laterals[-1]]
        for lateral in reversed(laterals[:-1]):
            sums.append(lateral + upsample_nearest(sums[-1], lateral.shape[1], lateral.shape[2]))
        levels = LevelConvs(self.features, 3, self.precision, name="fpn_convs")(tuple(sums[::-1]))
        return (*levels, levels[-1][:, ::2, ::2])


class LevelConvs(nn.Module):
    """One convolution with bias for each level."""

    features: int
    kernel_size: int
    precision: Precision

    @nn.compact
    def __call__(
        self, levels: tuple[Float[Array, "B _ _ _"], ...]
    ) -> tuple[Float[Array, "B _ _ F"], ...]:
        """Return the convolved levels."""
        return tuple(
            LevelConv(self.features, self.kernel_size, self.precision, name=str(index))(x)
            for index, x in enumerate(levels)
        )


class LevelConv(nn.Module):
    """A convolution with bias, under the name ``conv``."""

    features: int
    kernel_size: int
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w F"]:
        """Return the convolved level."""
        kernel, bias = ConvWeights(
            x.shape[-1],
            self.features,
            self.kernel_size,
            use_bias=True,
            kernel_init=xavier_uniform,
            name="conv",
        )()
        return convolve(x, kernel, bias, self.precision)


def upsample_nearest(
    x: Float[Array, "B h w C"], height: int, width: int
) -> Float[Array, "B H W C"]:
    """Upsample to twice the size, or to one pixel less, by repeating pixels.

    A lower level has one of these sizes, because its stride is half as large. For them, doubling
    and cropping takes the same pixels as PyTorch's ``floor(i * h / H)``.
    """
    batch, rows, columns, channels = x.shape
    doubled = jnp.broadcast_to(
        x[:, :, None, :, None], (batch, rows, 2, columns, 2, channels)
    ).reshape(batch, 2 * rows, 2 * columns, channels)
    return doubled[:, :height, :width]
