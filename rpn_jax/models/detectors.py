"""Detectors: a backbone, a neck and heads."""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path

from rpn_jax.config import CANVAS_MULTIPLE, Config, ModelConfig, check_part
from rpn_jax.devices import cpu_device
from rpn_jax.errors import UserError
from rpn_jax.models.backbone import Backbone, backbone_of_class
from rpn_jax.models.fpn import FPN
from rpn_jax.models.resnet import ResNet
from rpn_jax.models.roi.head import RoIHead
from rpn_jax.models.rpn.head import RPNHead
from rpn_jax.ops.checks import check_shapes
from rpn_jax.structures import RoIOutputs, RPNOutputs, Variables

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

    Levels = tuple[Float[Array, "B _ _ C"], ...]
    """One feature map [B, Hl, Wl, C] for each level."""


class Detector(nn.Module):
    """What all detectors have in common: a backbone, a neck and an RPN head.

    The backbone is the ResNet of the config, or any other `Backbone`. The commands train and use
    one of your own if ``config.backbone_class`` names its class. To train a module that no config
    names, pass it to a function of `rpn_jax.training.objectives`, its parameters and its backbone
    to `rpn_jax.training.optim.trainable_parameters`, and both results to
    `rpn_jax.training.step.make_step`. `rpn_jax.weights.checkpoints` saves and restores the state.

    Raises:
      UserError: ``config`` is another part of the config, the strides of the levels are not those
        of ``config.rpn.anchors``, or those of the backbone do not double from one to the next as an
        FPN needs.
    """

    config: ModelConfig
    axis_name: str | None = None
    """The `pmap` axis over which batch norm shares its statistics, if any."""
    folded: bool = False
    """For inference: use the weights that `rpn_jax.models.folding.fold_norms` returns."""
    backbone: Any = None
    """A `Backbone`. None: the one that the config describes. `axis_name` and `folded` apply only to
    that one."""

    def __post_init__(self) -> None:
        check_part(self.config, ModelConfig)
        if self.backbone is None:
            self.backbone = _backbone(self.config, self.axis_name, self.folded)
        _check_strides(self.config, self.backbone)
        super().__post_init__()

    def setup(self) -> None:
        config = self.config
        if config.neck == "fpn":
            self.neck = FPN(config.neck_channels, config.precision)
        self.rpn_head = RPNHead(config.rpn.channels, config.rpn.anchors.per_cell, config.precision)

    def features(self, images: Float[Array, "B H W 3"], train: bool = False) -> Levels:
        """Return the input of the heads, one array for each level.

        Args:
          images: normalised pictures, zeros as padding. H and W are multiples of 32.
          train: batch norm uses this batch's statistics (and updates ``batch_stats``, which must
            then be mutable). Other norms ignore it.

        Raises:
          UserError: the pictures are not normalised, a side is not a multiple of 32, or the feature
            maps of the backbone do not have its strides.
        """
        _check_images(images)
        stages = self.backbone(images, train)
        _check_maps(stages, self.backbone.strides, images)
        if self.config.neck == "fpn":
            return self.neck(stages)
        levels = stages[-len(self.config.rpn.anchors.strides) :]
        channels = [level.shape[-1] for level in levels]
        if len(set(channels)) > 1:
            raise UserError(
                f"model.neck = 'none': the backbone's features have {channels} channels, but a "
                "head needs the same number in all levels. Use model.neck = 'fpn'."
            )
        return levels

    def rpn_outputs(self, levels: Levels) -> RPNOutputs:
        """Return objectness and deltas at every cell of `features`."""
        return self.rpn_head(levels)

    def rpn_outputs_at(self, levels: Levels, cells: Int[Array, "B S"]) -> RPNOutputs:
        """Return objectness and deltas at some cells, as a single level with one row of cells.

        Args:
          levels: what `features` returned.
          cells: flat cell indices, order level, row, column; distinct for each picture.
        """
        return self.rpn_head.at_cells(levels, cells)


class RPN(Detector):
    """Region Proposal Network (Ren et al. 2015): boxes without classes.

    ``model.apply(variables, images)`` takes normalised float32 pictures [B, H, W, 3] and returns
    `RPNOutputs`.
    """

    def __call__(self, images: Float[Array, "B H W 3"], train: bool = False) -> RPNOutputs:
        """Return objectness and deltas of every level. Arguments as in `features`."""
        return self.rpn_outputs(self.features(images, train))


class FasterRCNN(Detector):
    """Faster R-CNN (Ren et al. 2015): an RPN, and a second stage on the same features.

    The two stages are called one after the other, with `rpn_jax.propose` between them::

        levels = model.apply(variables, images, method="features")
        outputs = model.apply(variables, levels, method="rpn_outputs")
        proposals = rpn_jax.propose(config, outputs, image_sizes)
        roi = model.apply(variables, levels, proposals.boxes, method="roi_outputs")

    Raises:
      UserError: ``config.roi`` is None, or a reason of `Detector`.
    """

    def setup(self) -> None:
        super().setup()
        config = self.config
        assert config.roi is not None
        self.roi_head = RoIHead(
            config.roi, config.backbone, self.roi_strides, config.precision, self.folded
        )

    def __post_init__(self) -> None:
        check_part(self.config, ModelConfig)
        if self.config.roi is None:
            raise UserError("model.roi: is None, but a Faster R-CNN needs a second stage. Use RPN.")
        super().__post_init__()

    @property
    def roi_strides(self) -> tuple[int, ...]:
        """Strides of the levels that boxes are pooled from: not the extra level of the pyramid."""
        strides = self.config.rpn.anchors.strides
        return strides[:-1] if self.config.neck == "fpn" else strides

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        boxes_xyxy: Float[Array, "B N 4"],
        train: bool = False,
    ) -> tuple[RPNOutputs, RoIOutputs]:
        """Return the outputs of the first stage, and those of the second for given boxes.

        Args:
          images: normalised pictures, zeros as padding.
          boxes_xyxy: resized pixels.
          train: as in `features`.
        """
        levels = self.features(images, train)
        return self.rpn_outputs(levels), self.roi_outputs(levels, boxes_xyxy)

    def roi_outputs(self, levels: Levels, boxes_xyxy: Float[Array, "B N 4"]) -> RoIOutputs:
        """Return classes and deltas of boxes.

        Args:
          levels: what `features` returned.
          boxes_xyxy: float32 resized pixels. A box without area gets features of zero, so zeros may
            stand for boxes that do not exist.
        """
        return self.roi_head(levels[: len(self.roi_strides)], boxes_xyxy)

    def roi_features(
        self, levels: Levels, boxes_xyxy: Float[Array, "B N 4"]
    ) -> Float[Array, "B N P P C"]:
        """Return the pooled features of boxes: the first half of `roi_outputs`."""
        return self.roi_head.pool(levels[: len(self.roi_strides)], boxes_xyxy)

    def roi_outputs_of(self, pooled: Float[Array, "B N P P C"]) -> RoIOutputs:
        """Return classes and deltas from `roi_features`: the second half of `roi_outputs`."""
        return self.roi_head.outputs(pooled)

    def call_layers(self, images: Float[Array, "B H W 3"]) -> None:
        """Call every layer that has weights once. RoIAlign has none, and tracing it takes long."""
        levels = self.features(images)
        self.rpn_outputs(levels)
        size, channels = self.roi_head.pooled_size, levels[0].shape[-1]
        self.roi_outputs_of(jnp.zeros((1, 1, size, size, channels), levels[0].dtype))


def build_detector(config: ModelConfig, folded: bool = False) -> RPN | FasterRCNN:
    """Return the detector of a config: a `FasterRCNN` if it has a second stage, else an `RPN`."""
    detector = RPN if config.roi is None else FasterRCNN
    return detector(config, folded=folded)


def init_variables(config: Config, seed: int = 0) -> Variables:
    """Return random variables for training from scratch, the same for the same seed.

    The CPU draws them if JAX can use it, whatever device trains. They end on the default device.
    Raises a UserError if ``config`` is only a part of a config.
    """
    check_part(config, Config)
    # The program runs once. Level 1 gives the same bits and halves the compilation: 18 instead of
    # 35 s for a ResNet-50 on two busy cores.
    draw = jax.jit(
        partial(_draw_variables, config.model),
        compiler_options={"xla_backend_optimization_level": 1},
    )
    with jax.default_device(cpu_device()):
        drawn = draw(jax.random.key(seed))
    return jax.device_put(jax.device_get(drawn))


def variable_shapes(config: Config) -> Variables:
    """Return the shapes and dtypes of the variables (`jax.ShapeDtypeStruct`), without computing.

    A model is traced once. Its shapes are shared by all callers and must not be changed.
    """
    return _shapes_of_model(config.model)


@cache
def _shapes_of_model(model: ModelConfig) -> Variables:
    shapes = jax.eval_shape(partial(_draw_variables, model), jax.random.key(0))
    if model.backbone_class:
        larger = partial(_draw_variables, model, side=4 * CANVAS_MULTIPLE)
        _check_independent_of_pictures(shapes, jax.eval_shape(larger, jax.random.key(0)))
    return shapes


def _draw_variables(model: ModelConfig, key: jax.Array, side: int = CANVAS_MULTIPLE) -> Variables:
    """Return new variables. They are drawn for a picture of a size that does not matter."""
    images = jnp.zeros((1, side, side, 3))
    method = "__call__" if model.roi is None else "call_layers"
    # Without the names of axes that some modules add to their parameters for sharding.
    return dict(nn.unbox(build_detector(model).init(key, images, method=method)))


def _check_independent_of_pictures(small: Variables, large: Variables) -> None:
    """Refuse variables whose shapes differ between two sizes of pictures."""
    shapes = {keystr(path): leaf.shape for path, leaf in tree_leaves_with_path(large)}
    for path, leaf in tree_leaves_with_path(small):
        other = shapes.get(keystr(path))
        if leaf.shape != other:
            name = keystr(path, simple=True, separator=".")
            raise UserError(
                f"backbone: '{name}' has shape {leaf.shape} for small pictures and {other} for "
                "larger ones, but the variables of a backbone must not depend on the size of the "
                "pictures. A ViT resizes its position embeddings."
            )


def _backbone(config: ModelConfig, axis_name: str | None, folded: bool) -> Backbone:
    if config.backbone_class:
        return backbone_of_class(config.backbone_class, folded)
    # No parent: the detector adopts it, even if the detector itself is part of another module.
    return ResNet(config.backbone, config.precision, axis_name, folded, parent=None)


def _check_images(images: Float[Array, "B H W 3"]) -> None:
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"images: have the dtype {images.dtype}, but the network needs normalised float32 "
            "pictures. Use rpn_jax.normalize_images."
        )
    check_shapes("network", {"images": (images, "B H W 3")})
    height, width = images.shape[1:3]
    if height % CANVAS_MULTIPLE or width % CANVAS_MULTIPLE:
        raise UserError(
            f"images: have {height}x{width} pixels (height x width), but both sides must be "
            f"multiples of {CANVAS_MULTIPLE}. Pad with zeros on the right and at the bottom."
        )


def _check_maps(maps: Any, strides: tuple[int, ...], images: Float[Array, "B H W 3"]) -> None:
    batch, height, width, _ = images.shape
    expected = [(batch, -(-height // stride), -(-width // stride)) for stride in strides]
    if not isinstance(maps, tuple | list):
        raise UserError(
            f"backbone: returns a {type(maps).__name__}: must return a tuple with one feature map "
            "for each stride."
        )
    found = [each.shape[:-1] for each in maps]
    if found != expected:
        raise UserError(
            f"backbone: returns feature maps of the shapes {found}, without channels. With the "
            f"strides {strides} and pictures of {height}x{width} pixels they must be {expected}."
        )


def _check_strides(config: ModelConfig, backbone: Backbone) -> None:
    strides, anchors = backbone.strides, config.rpn.anchors.strides
    if config.neck == "fpn" and any(finer * 2 != coarser for finer, coarser in pairwise(strides)):
        raise UserError(
            f"model.neck = 'fpn': the backbone's strides are {strides}, but each must be twice the "
            "one before. Use model.neck = 'none', or a backbone without a dilated stage."
        )
    extra_level = (2 * strides[-1],)
    levels = strides + extra_level if config.neck == "fpn" else strides[-len(anchors) :]
    if anchors != levels:
        raise UserError(
            f"model.rpn.anchors.strides = {anchors}: does not match the levels of the network. "
            f"With this backbone and neck '{config.neck}', it must be {levels}."
        )
