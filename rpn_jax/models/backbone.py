"""What a detector requires of its backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@runtime_checkable
class Backbone(Protocol):
    """A Flax module that maps pictures to feature maps with known strides.

    `rpn_jax.models.resnet.ResNet` is one. Any module with these members can take its place:
    ``RPN(config.model, backbone=module)``.
    """

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between the cells of each feature map, finest first, doubling if it has an FPN."""

    @property
    def norm_of(self) -> Mapping[str, str] | None:
        """Name of the norm with stored statistics that follows each convolution, by its name.

        Both are children of the same module, and hold the weights of `ConvWeights` and `FrozenNorm`
        (`rpn_jax.models.layers`). `rpn_jax.models.folding.fold_norms` folds them for inference.
        None: it leaves all weights of this backbone as they are.
        """

    def __call__(
        self, images: Float[Array, "B H W 3"], train: bool
    ) -> tuple[Float[Array, "B h w C"], ...]:
        """Return one feature map for each stride, with ceil(H / stride) rows, columns likewise.

        Args:
          images: normalised pictures, zeros as padding.
          train: whether batch norm uses and updates the statistics of this batch.
        """

    def trains(self, path: tuple[str, ...]) -> bool:
        """Return whether the optimiser changes the parameter at this path in the backbone."""
