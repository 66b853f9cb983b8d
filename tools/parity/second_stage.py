"""Run a Faster R-CNN, its losses, training steps and detections on one case."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rpn_jax.config import CANVAS_MULTIPLE, Config, OptimConfig, replace
from rpn_jax.models import FasterRCNN
from rpn_jax.models.roi.detections import detect
from rpn_jax.models.roi.loss import class_accuracy, roi_loss
from rpn_jax.models.roi.targets import RoITargets, match_proposals, roi_targets
from rpn_jax.models.rpn.loss import rpn_loss
from rpn_jax.models.rpn.proposals import candidates, propose
from rpn_jax.ops import clip_boxes
from rpn_jax.ops.nms import nms_per_level
from rpn_jax.structures import Batch, Detections, Proposals, RoIOutputs, RPNOutputs, Variables
from rpn_jax.training.optim import build_optimizer, trainable_parameters
from tools.parity.cases import Case
from tools.parity.compare import count_found, detection_rows
from tools.parity.detection_ties import Classifier, settle_detection_ties
from tools.parity.network import parameter_norms
from tools.parity.weights import variables_by_rule

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int
    from numpy import ndarray

    Levels = tuple[Float[Array, "B _ _ C"], ...]

SGD = OptimConfig(
    learning_rate=1e-5, momentum=0.9, weight_decay=0.5, warmup_steps=0, decay_epochs=()
)
"""Settings of the reference's three steps on the given boxes. The learning rate is constant."""
SGD_STEPS = 3
CHUNK = 256
"""Number of boxes of a picture for which the joint step runs the second stage at once."""
FIRST_STAGE_HEAD = "rpn_head"
"""Module without a gradient in the loss of the second stage. The reference does not move it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pooled:
    """Results for the given boxes, padded as these are."""

    level_means: list[Float[Array, "B C"]]
    features: Float[Array, "B N P P C"]
    outputs: RoIOutputs


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Step:
    """Results of one training step."""

    loss: dict[str, Float[Array, ""]]
    accuracy: Float[Array, ""]
    gradients: Any

    @property
    def total(self) -> float:
        """The sum of the loss terms."""
        return float(sum(self.loss.values()))


@dataclass(frozen=True)
class Descent:
    """Three SGD steps on the loss of the given boxes."""

    losses: list[float]
    """Loss before each step and after the last."""
    moves: dict[str, float]
    """L2 distance that each trained parameter moved, by PyTorch's key."""


class Alone(NamedTuple):
    """The first stage's results for one picture."""

    image_size: Int[Array, "1 2"]
    levels: Levels
    outputs: RPNOutputs


class TwoStages:
    """Results of this package for a case. Each is computed when it is first used."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.config = case.config
        self.model = FasterRCNN(case.config.model)
        self.images = jnp.asarray(case.images)
        self.image_sizes = jnp.asarray(case.image_sizes)
        self.given, self.given_mask = map(jnp.asarray, case.given)
        self.boxes, self.box_mask = map(jnp.asarray, case.boxes)
        self.labels = jnp.asarray(case.labels)

    @cached_property
    def variables(self) -> Variables:
        """The weights of the case."""
        return variables_by_rule(self.config, self.case.seed)

    @cached_property
    def trainable(self) -> Any:
        """Whether each parameter is trained."""
        return trainable_parameters(self.variables["params"], self.model.backbone)

    @cached_property
    def pooled(self) -> Pooled:
        """Pooled features and outputs of the given boxes."""
        return _pooled(self.model, self.variables, self.images, self.given)

    @cached_property
    def given_detections(self) -> list[Float[ndarray, "n 6"]]:
        """Detections of the given boxes of each picture: xyxy, score and class."""
        detections = jax.jit(partial(detect, self.config))(
            self.pooled.outputs, self.given, self.given_mask, self.image_sizes
        )
        return detection_rows(detections)

    @cached_property
    def assigned(self) -> Int[ndarray, "B N"]:
        """Matching of the given boxes: 0 background, k the box k - 1."""
        match = jax.jit(jax.vmap(partial(match_proposals, self.config.roi_loss)))
        return np.asarray(match(self.given, self.given_mask, self.boxes, self.box_mask))

    @cached_property
    def given_targets(self) -> RoITargets:
        """Targets of all given boxes and objects."""
        return jax.jit(partial(roi_targets, self.config))(
            self.given, self.given_mask, self.boxes, self.labels, self.box_mask, jax.random.key(0)
        )

    @cached_property
    def given_step(self) -> Step:
        """Loss and gradients of the second stage on the given boxes."""
        return self._first_given_step[0]

    @cached_property
    def given_descent(self) -> Descent:
        """Three SGD steps on that loss."""
        first, variables, opt_state = self._first_given_step
        losses = [first.total]
        for _ in range(SGD_STEPS):
            last = variables
            result, variables, opt_state = self._take_given_step(variables, opt_state)
            losses.append(result.total)
        start = self.variables["params"]
        moved = jax.tree.map(np.subtract, jax.device_get(last["params"]), start)
        return Descent(losses, parameter_norms(moved, self.trainable))

    @cached_property
    def joint_step(self) -> Step:
        """Loss and gradients of both stages on the model's own proposals."""
        batch = Batch(
            images=self.images,
            image_sizes=self.image_sizes,
            scale_factors=jnp.ones((len(self.images), 2)),
            boxes_xyxy=self.boxes,
            labels=self.labels,
            box_mask=self.box_mask,
            indices=jnp.arange(len(self.images)),
        )
        return _joint_step(self.model, self.config, self.variables, batch)

    @cached_property
    def detections(self) -> list[Float[ndarray, "n 6"]]:
        """Detections of the whole model: xyxy, score and class."""
        return [self._detect(alone, alone.outputs) for alone in self._alone]

    @cached_property
    def settled_detections(self) -> list[Float[ndarray, "n 6"]]:
        """Detections with equal scores of anchors in the reference's order."""
        settled = []
        for i, (alone, rows) in enumerate(zip(self._alone, self.detections, strict=True)):
            reference = self.case.fields[f"detections_{i}"]
            if count_found(rows, reference) < len(reference):
                outputs = settle_detection_ties(
                    self.config, alone.outputs, alone.image_size, reference, self._classifier(alone)
                )
                rows = self._detect(alone, outputs)
            settled.append(rows)
        return settled

    @cached_property
    def _alone(self) -> list[Alone]:
        """The first stage's results for each picture on its own padding to 32."""
        results = []
        for image, size in zip(self.images, self.image_sizes, strict=True):
            height, width = (-(-int(side) // CANVAS_MULTIPLE) * CANVAS_MULTIPLE for side in size)
            crop = image[None, :height, :width]
            results.append(Alone(size[None], *_first_stage(self.model, self.variables, crop)))
        return results

    def _detect(self, alone: Alone, outputs: RPNOutputs) -> Float[ndarray, "n 6"]:
        detections = _second_stage(
            self.model, self.config, self.variables, alone.levels, outputs, alone.image_size
        )
        return detection_rows(detections)[0]

    def _classifier(self, alone: Alone) -> Classifier:
        return partial(_classify, self.model, self.variables, alone.levels)

    @cached_property
    def _first_given_step(self) -> tuple[Step, Variables, optax.OptState]:
        return self._take_given_step(
            self.variables, jax.jit(self._optimizer.init)(self.variables["params"])
        )

    @cached_property
    def _optimizer(self) -> optax.GradientTransformation:
        still = jax.tree.map(lambda _: False, self.trainable[FIRST_STAGE_HEAD])
        trainable = {**self.trainable, FIRST_STAGE_HEAD: still}
        return build_optimizer(SGD, trainable, steps_per_epoch=1, batch_size=1)[0]

    def _take_given_step(
        self, variables: Variables, opt_state: optax.OptState
    ) -> tuple[Step, Variables, optax.OptState]:
        return _given_step(
            self.model, self._optimizer, variables, opt_state, self.images, self.given_targets
        )


@partial(jax.jit, static_argnums=0)
def _pooled(
    model: FasterRCNN,
    variables: Variables,
    images: Float[Array, "B H W 3"],
    boxes: Float[Array, "B N 4"],
) -> Pooled:
    levels = cast("Levels", model.apply(variables, images, method="features"))
    features = model.apply(variables, levels, boxes, method="roi_features")
    outputs = model.apply(variables, features, method="roi_outputs_of")
    means = [jnp.mean(level, axis=(1, 2)) for level in levels]
    return Pooled(means, cast("Array", features), cast(RoIOutputs, outputs))


@partial(jax.jit, static_argnums=(0, 1))
def _given_step(
    model: FasterRCNN,
    optimizer: optax.GradientTransformation,
    variables: Variables,
    opt_state: optax.OptState,
    images: Float[Array, "B H W 3"],
    targets: RoITargets,
) -> tuple[Step, Variables, optax.OptState]:
    """Return the result of a step on fixed boxes, and the variables and state after it."""

    def total_loss(params: Any) -> tuple[Float[Array, ""], Any]:
        weights = {**variables, "params": params}
        levels = model.apply(weights, images, method="features")
        outputs = cast(
            RoIOutputs, model.apply(weights, levels, targets.boxes_xyxy, method="roi_outputs")
        )
        loss = roi_loss(outputs, targets)
        return sum(loss.values(), jnp.zeros(())), (loss, class_accuracy(outputs, targets))

    params = variables["params"]
    gradients, (loss, accuracy) = jax.grad(total_loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    moved = {**variables, "params": optax.apply_updates(params, updates)}
    return Step(loss, accuracy, gradients), moved, opt_state


@partial(jax.jit, static_argnums=(0, 1))
def _joint_step(model: FasterRCNN, config: Config, variables: Variables, batch: Batch) -> Step:
    """Return the losses of both stages. Every anchor, proposal and object is sampled."""
    rng = jax.random.key(0)  # Nothing is drawn.
    truth = (batch.boxes_xyxy, batch.box_mask)

    def total_loss(params: Any) -> tuple[Float[Array, ""], Any]:
        weights = {**variables, "params": params}
        levels = cast("Levels", model.apply(weights, batch.images, method="features"))
        first = cast(RPNOutputs, model.apply(weights, levels, method="rpn_outputs"))
        proposals = _canvas_proposals(config, jax.lax.stop_gradient(first), batch)
        targets = roi_targets(
            config,
            proposals.boxes,
            proposals.valid,
            batch.boxes_xyxy,
            batch.labels,
            batch.box_mask,
            rng,
        )
        second = _outputs_in_chunks(model, weights, levels, targets.boxes_xyxy)
        loss = rpn_loss(config, first, *truth, batch.image_sizes, rng) | roi_loss(second, targets)
        return sum(loss.values(), jnp.zeros(())), (loss, class_accuracy(second, targets))

    gradients, (loss, accuracy) = jax.grad(total_loss, has_aux=True)(variables["params"])
    return Step(loss, accuracy, gradients)


def _outputs_in_chunks(
    model: FasterRCNN, variables: Variables, levels: Levels, boxes: Float[Array, "B N 4"]
) -> RoIOutputs:
    """Return the second stage's outputs, with the activations of one chunk of boxes in memory.

    Every proposal is sampled. The gradient of head 'layer4' for all of them at once needs more than
    15 GB.
    """
    pictures, count = boxes.shape[:2]
    padded = jnp.pad(boxes, ((0, 0), (0, -count % CHUNK), (0, 0)))
    chunks = jnp.moveaxis(padded.reshape(pictures, -1, CHUNK, 4), 1, 0)

    def one_chunk(chunk: Float[Array, "B n 4"]) -> RoIOutputs:
        return cast(RoIOutputs, model.apply(variables, levels, chunk, method="roi_outputs"))

    outputs = jax.lax.map(jax.checkpoint(one_chunk), chunks)

    def joined(parts: Float[Array, "c B n *rest"]) -> Float[Array, "B N *rest"]:
        rows = jnp.moveaxis(parts, 0, 1).reshape(pictures, -1, *parts.shape[3:])
        return rows[:, :count]

    return jax.tree.map(joined, outputs)


def _canvas_proposals(config: Config, outputs: RPNOutputs, batch: Batch) -> Proposals:
    """Return proposals for training as the reference does: also from anchors on a batch's padding.

    `rpn_jax.models.rpn.proposals.propose` leaves these anchors out. Nothing else differs.
    """
    settings = replace(
        config.rpn_proposals,
        nms_pre=config.roi_loss.nms_pre,
        max_proposals=config.roi_loss.max_proposals,
    )
    config = replace(config, rpn_proposals=settings)
    canvas = jnp.tile(jnp.array(batch.images.shape[1:3], jnp.int32), (len(batch.images), 1))
    boxes, logits, valid = candidates(config, outputs, canvas)
    boxes = clip_boxes(boxes.reshape(len(boxes), -1, 4), batch.image_sizes).reshape(boxes.shape)
    valid &= jnp.all(boxes[..., 2:] > boxes[..., :2], axis=-1)
    indices, kept = nms_per_level(boxes, logits, valid, settings.nms_iou, settings.max_proposals)
    kept_boxes = jnp.take_along_axis(boxes.reshape(len(boxes), -1, 4), indices[..., None], axis=1)
    return Proposals(jnp.where(kept[..., None], kept_boxes, 0.0), jnp.zeros(kept.shape), kept)


@partial(jax.jit, static_argnums=0)
def _first_stage(
    model: FasterRCNN, variables: Variables, images: Float[Array, "B H W 3"]
) -> tuple[Levels, RPNOutputs]:
    levels = cast("Levels", model.apply(variables, images, method="features"))
    return levels, cast(RPNOutputs, model.apply(variables, levels, method="rpn_outputs"))


@partial(jax.jit, static_argnums=(0, 1))
def _second_stage(
    model: FasterRCNN,
    config: Config,
    variables: Variables,
    levels: Levels,
    outputs: RPNOutputs,
    image_sizes: Int[Array, "B 2"],
) -> Detections:
    proposals = propose(config, outputs, image_sizes)
    roi = _classify(model, variables, levels, proposals.boxes)
    return detect(config, roi, proposals.boxes, proposals.valid, image_sizes)


@partial(jax.jit, static_argnums=0)
def _classify(
    model: FasterRCNN, variables: Variables, levels: Levels, boxes: Float[Array, "B N 4"]
) -> RoIOutputs:
    return cast(RoIOutputs, model.apply(variables, levels, boxes, method="roi_outputs"))
