"""Run the network, its loss, training steps and proposals on one case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rpn_jax.config import Config, OptimConfig
from rpn_jax.inference.results import picture_proposals
from rpn_jax.models import RPN, build_detector
from rpn_jax.models.rpn.loss import rpn_loss
from rpn_jax.models.rpn.proposals import propose
from rpn_jax.ops import anchor_validity, assign_anchors, grid_anchors
from rpn_jax.structures import Proposals, RPNOutputs, Variables
from rpn_jax.training.optim import build_optimizer, trainable_parameters
from rpn_jax.weights.torch.names import flat_by_torch_key
from tools.parity.cases import Case
from tools.parity.compare import proposal_rows
from tools.parity.ties import settle_ties
from tools.parity.weights import variables_by_rule

if TYPE_CHECKING:
    import flax.linen as nn
    from jaxtyping import Array, Float, Int
    from numpy import ndarray

SGD = OptimConfig(
    learning_rate=1e-4, momentum=0.9, weight_decay=0.05, warmup_steps=0, decay_epochs=()
)
"""Settings of the reference's three steps. The learning rate is constant."""
SGD_STEPS = 3


@dataclass(frozen=True)
class Ours:
    """Results of this package for a case: NumPy arrays; parameters by PyTorch's key."""

    backbone_means: list[Float[ndarray, "B C"]]
    pyramid_means: list[Float[ndarray, "B C"]]
    objectness: list[Float[ndarray, "B Hl Wl A"]]
    deltas: list[Float[ndarray, "B Hl Wl A 4"]]
    anchors: Float[ndarray, "K 4"]
    labels: Int[ndarray, "B K"]
    proposals: list[Float[ndarray, "n 5"]]
    """xyxy and score for each picture."""
    settled_proposals: list[Float[ndarray, "n 5"]]
    """Proposals with equal scores in the reference's order, see `tools.parity.ties`."""
    loss: dict[str, float]
    gradient_norms: dict[str, float]
    """L2 norm of the gradient of each trained parameter."""
    sgd_losses: list[float]
    """Loss before each step and after the last. Empty if the case has no SGD fields."""
    sgd_moves: dict[str, float]
    """L2 distance that each trained parameter moved. Empty if the case has no SGD fields."""


def run(case: Case) -> Ours:
    """Compute everything that is compared. The training step is compiled once."""
    variables = variables_by_rule(case.config, case.seed)
    trainable = trainable_parameters(
        variables["params"], build_detector(case.config.model).backbone
    )
    optimizer, _ = build_optimizer(SGD, trainable, steps_per_epoch=1, batch_size=1)
    step = _training_step(case, optimizer)

    first, after_first, opt_state = step(variables, jax.jit(optimizer.init)(variables["params"]))
    sgd_losses: list[float] = []
    sgd_moves: dict[str, float] = {}
    if "sgd_losses" in case.fields or "sgd_moves" in case.fields:
        sgd_losses, last = _descend(step, first, after_first, opt_state)
        moved = jax.tree.map(np.subtract, jax.device_get(last["params"]), variables["params"])
        sgd_moves = parameter_norms(moved, trainable)

    level_shapes = first.outputs.level_shapes
    propose_ = jax.jit(partial(propose, case.config))
    return Ours(
        backbone_means=[np.asarray(mean) for mean in first.backbone_means],
        pyramid_means=[np.asarray(mean) for mean in first.pyramid_means],
        objectness=[np.asarray(level) for level in first.outputs.objectness],
        deltas=[np.asarray(level) for level in first.outputs.deltas],
        anchors=np.asarray(_anchors(case, level_shapes)),
        labels=np.asarray(_labels(case, level_shapes)),
        proposals=_rows(propose_(first.outputs, case.image_sizes)),
        settled_proposals=_rows(propose_(_settled(case, first.outputs), case.image_sizes)),
        loss={name: float(value) for name, value in first.loss.items()},
        gradient_norms=parameter_norms(jax.device_get(first.gradients), trainable),
        sgd_losses=sgd_losses,
        sgd_moves=sgd_moves,
    )


def parameter_norms(tree: Any, trainable: Any) -> dict[str, float]:
    """Return the L2 norm, in float64, of each trained parameter, by PyTorch's key."""
    leaves, trains = (flat_by_torch_key({"params": x}) for x in (tree, trainable))
    return {
        key: float(np.linalg.norm(leaf.astype(np.float64)))
        for key, (_, leaf) in leaves.items()
        if trains[key][1]
    }


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepResult:
    """Intermediate results of one training step."""

    outputs: RPNOutputs
    backbone_means: list[Float[Array, "B C"]]
    pyramid_means: list[Float[Array, "B C"]]
    loss: dict[str, Float[Array, ""]]
    gradients: Any

    @property
    def total(self) -> float:
        """The sum of the loss terms."""
        return float(sum(self.loss.values()))


Inputs = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""Images, image_sizes, boxes, box_mask."""
Step = Callable[[Variables, optax.OptState], tuple[StepResult, Variables, optax.OptState]]


def _training_step(case: Case, optimizer: optax.GradientTransformation) -> Step:
    model = RPN(case.config.model)
    # Every anchor is sampled, so the result does not depend on this key.
    rng = jax.random.key(0)

    @jax.jit
    def step(
        inputs: Inputs, variables: Variables, opt_state: optax.OptState
    ) -> tuple[StepResult, Variables, optax.OptState]:
        images, image_sizes, boxes, box_mask = inputs

        def total_loss(params: Any) -> tuple[Float[Array, ""], tuple[Any, ...]]:
            outputs, captured = model.apply(
                {**variables, "params": params},
                images,
                capture_intermediates=_is_trunk,
                mutable=["intermediates"],
            )
            loss = rpn_loss(case.config, outputs, boxes, box_mask, image_sizes, rng)
            backbone, pyramid = _features(case.config, captured["intermediates"])
            means = [[jnp.mean(x, axis=(1, 2)) for x in levels] for levels in (backbone, pyramid)]
            return sum(loss.values(), jnp.zeros(())), (outputs, *means, loss)

        params = variables["params"]
        gradients, computed = jax.grad(total_loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        moved = {**variables, "params": optax.apply_updates(params, updates)}
        outputs, backbone_means, pyramid_means, loss = computed
        result = StepResult(outputs, backbone_means, pyramid_means, loss, gradients)
        return result, moved, opt_state

    # Pass the inputs as arguments: with constants XLA would compute parts at compile time.
    return partial(step, tuple(map(jnp.asarray, (case.images, case.image_sizes, *case.boxes))))


def _is_trunk(module: nn.Module, method: str) -> bool:
    return module.name in ("backbone", "neck") and method == "__call__"


def _features(
    config: Config, captured: dict[str, Any]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return the features that the backbone returns and those that the head receives."""
    (stages,) = captured["backbone"]["__call__"]
    if config.model.neck == "none":
        return stages[-1:], stages[-1:]
    (levels,) = captured["neck"]["__call__"]
    return stages, levels


def _descend(
    step: Step, first: StepResult, variables: Variables, opt_state: optax.OptState
) -> tuple[list[float], Variables]:
    """Return the losses before each step and after the last, and the last variables."""
    losses = [first.total]
    for _ in range(SGD_STEPS):
        last = variables
        result, variables, opt_state = step(variables, opt_state)
        losses.append(result.total)
    return losses, last


def _anchors(case: Case, level_shapes: list[tuple[int, int]]) -> Float[Array, "K 4"]:
    anchors = case.config.model.rpn.anchors
    return jax.jit(lambda: jnp.concatenate(grid_anchors(level_shapes, anchors)))()


def _labels(case: Case, level_shapes: list[tuple[int, int]]) -> Int[Array, "B K"]:
    anchors = _anchors(case, level_shapes)
    loss = case.config.rpn_loss

    def one_picture(valid: Array, boxes: Array, mask: Array) -> Int[Array, " K"]:
        return assign_anchors(
            anchors,
            valid,
            boxes,
            mask,
            loss.positive_iou,
            loss.negative_iou,
            loss.min_positive_iou,
        )

    @jax.jit
    def all_pictures(image_sizes: Array, boxes: Array, mask: Array) -> Int[Array, "B K"]:
        valid = anchor_validity(level_shapes, case.config.model.rpn.anchors, image_sizes)
        return jax.vmap(one_picture)(valid, boxes, mask)

    return all_pictures(case.image_sizes, *case.boxes)


def _settled(case: Case, outputs: RPNOutputs) -> RPNOutputs:
    reference = [
        case.fields.get(f"proposals_{i}", np.zeros((0, 5), np.float32))
        for i in range(len(case.image_sizes))
    ]
    return settle_ties(case.config, outputs, jnp.asarray(case.image_sizes), None, reference)


def _rows(proposals: Proposals) -> list[Float[ndarray, "n 5"]]:
    pictures = picture_proposals(range(len(proposals.valid)), proposals)
    return [proposal_rows(picture) for picture in pictures]
