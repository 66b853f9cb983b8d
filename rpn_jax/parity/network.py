"""The network, its loss and its proposals on one case, measured against the reference."""

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
from rpn_jax.errors import UserError
from rpn_jax.losses import rpn_loss
from rpn_jax.models import RPN
from rpn_jax.ops import anchor_validity, assign_anchors, grid_anchors
from rpn_jax.optim import make_optimizer, trainable_parameters
from rpn_jax.parity.cases import Case
from rpn_jax.parity.compare import (
    ProposalAgreement,
    compare_labels,
    compare_proposals,
    relative,
    relative_l2,
    worst,
)
from rpn_jax.parity.quantities import Quantity, rows_of
from rpn_jax.parity.rows import Bar, Measured, Row
from rpn_jax.parity.ties import settle_ties
from rpn_jax.parity.weights import variables_by_rule
from rpn_jax.proposals import propose
from rpn_jax.structures import Proposals, RPNOutputs
from rpn_jax.torch_weights.names import flat_by_torch_key

if TYPE_CHECKING:
    import flax.linen as nn
    from jaxtyping import Array, Float, Int
    from numpy import ndarray

    from rpn_jax.models.rpn import Variables

SGD = OptimConfig(learning_rate=1e-4, momentum=0.9, weight_decay=0.05)
"""Of the reference's three steps; the learning rate is constant."""
SGD_STEPS = 3


@dataclass(frozen=True)
class Ours:
    """What this package computes for a case; NumPy arrays, parameters by PyTorch's key."""

    backbone_means: list[Float[ndarray, "B C"]]
    pyramid_means: list[Float[ndarray, "B C"]]
    objectness: list[Float[ndarray, "B Hl Wl A"]]
    deltas: list[Float[ndarray, "B Hl Wl A 4"]]
    anchors: Float[ndarray, "K 4"]
    labels: Int[ndarray, "B K"]
    proposals: list[Float[ndarray, "n 5"]]
    """xyxy and score of each picture."""
    settled_proposals: list[Float[ndarray, "n 5"]]
    """With equal scores ordered as in the reference, see `rpn_jax.parity.ties`."""
    loss: dict[str, float]
    gradient_norms: dict[str, float]
    """Of the parameters that train."""
    sgd_losses: list[float]
    """Before each step and after the last; empty where the case does not ask for steps."""
    sgd_moves: dict[str, float]
    """L2 distance that each parameter that trains has moved; likewise."""


def network_rows(case: Case) -> list[Row]:
    """Run the network on a case and measure every quantity that the case holds.

    Raises:
      UserError: head outputs of other shapes than those of the config.
    """
    if "images" not in case.fields:
        return rows_of(case, QUANTITIES, None)
    ours = run(case)
    _check_shapes(case, ours)
    return rows_of(case, QUANTITIES, ours)


def run(case: Case) -> Ours:
    """All that is compared, with one compilation of the training step."""
    variables = variables_by_rule(case.config, case.seed)
    trainable = trainable_parameters(variables["params"], case.config.model.backbone)
    schedule = optax.constant_schedule(SGD.learning_rate)
    optimizer = make_optimizer(SGD, schedule, trainable)
    step = _training_step(case, optimizer)

    first, after_first, opt_state = step(variables, optimizer.init(variables["params"]))
    sgd_losses: list[float] = []
    sgd_moves: dict[str, float] = {}
    if "sgd_losses" in case.fields or "sgd_moves" in case.fields:
        sgd_losses, last = _descend(step, first, after_first, opt_state)
        moved = jax.tree.map(np.subtract, jax.device_get(last["params"]), variables["params"])
        sgd_moves = _norms(moved, trainable)

    level_shapes = [(level.shape[1], level.shape[2]) for level in first.outputs.objectness]
    propose_ = jax.jit(partial(propose, case.config))
    return Ours(
        backbone_means=[np.asarray(mean) for mean in first.backbone_means],
        pyramid_means=[np.asarray(mean) for mean in first.pyramid_means],
        objectness=[np.asarray(level) for level in first.outputs.objectness],
        deltas=[np.asarray(level) for level in first.outputs.deltas],
        anchors=np.concatenate(grid_anchors(level_shapes, case.config.model.anchors)),
        labels=np.asarray(_labels(case, level_shapes)),
        proposals=_rows(propose_(first.outputs, case.image_sizes)),
        settled_proposals=_rows(propose_(_settled(case, first.outputs), case.image_sizes)),
        loss={name: float(value) for name, value in first.loss.items()},
        gradient_norms=_norms(jax.device_get(first.gradients), trainable),
        sgd_losses=sgd_losses,
        sgd_moves=sgd_moves,
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepResult:
    """What one training step computes on the way."""

    outputs: RPNOutputs
    backbone_means: list[Float[Array, "B C"]]
    pyramid_means: list[Float[Array, "B C"]]
    loss: dict[str, Float[Array, ""]]
    gradients: Any

    @property
    def total(self) -> float:
        """The loss that is minimised."""
        return float(sum(self.loss.values()))


Inputs = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""Images, image_sizes, boxes, box_mask."""
Step = Callable[["Variables", optax.OptState], tuple[StepResult, "Variables", optax.OptState]]


def _training_step(case: Case, optimizer: optax.GradientTransformation) -> Step:
    model = RPN(case.config.model)
    # No anchor is left to chance: every one is sampled, so any key does.
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

    # The inputs are arguments, as in training: XLA would compute with constants at compile time.
    return partial(step, tuple(map(jnp.asarray, (case.images, case.image_sizes, *case.boxes))))


def _is_trunk(module: nn.Module, method: str) -> bool:
    return module.name in ("backbone", "neck") and method == "__call__"


def _features(
    config: Config, captured: dict[str, Any]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """(features that the backbone hands on, features that the head sees)."""
    (stages,) = captured["backbone"]["__call__"]
    if config.model.neck == "none":
        return stages[-1:], stages[-1:]
    (levels,) = captured["neck"]["__call__"]
    return stages, levels


def _descend(
    step: Step, first: StepResult, variables: Variables, opt_state: optax.OptState
) -> tuple[list[float], Variables]:
    """(losses before each step and after the last, variables after the last)."""
    losses = [first.total]
    for _ in range(SGD_STEPS):
        last = variables
        result, variables, opt_state = step(variables, opt_state)
        losses.append(result.total)
    return losses, last


def _norms(tree: Any, trainable: Any) -> dict[str, float]:
    """L2 norms, in float64, of the leaves that train, by PyTorch's key."""
    leaves, trains = (flat_by_torch_key({"params": x}) for x in (tree, trainable))
    return {
        key: float(np.linalg.norm(leaf.astype(np.float64)))
        for key, (_, leaf) in leaves.items()
        if trains[key][1]
    }


def _labels(case: Case, level_shapes: list[tuple[int, int]]) -> Int[Array, "B K"]:
    anchors = jnp.concatenate(grid_anchors(level_shapes, case.config.model.anchors))
    sizes = jnp.asarray(case.image_sizes)
    valid = anchor_validity(level_shapes, case.config.model.anchors, sizes)
    loss = case.config.loss

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

    return jax.jit(jax.vmap(one_picture))(valid, *case.boxes)


def _settled(case: Case, outputs: RPNOutputs) -> RPNOutputs:
    reference = [
        case.fields.get(f"proposals_{i}", np.zeros((0, 5), np.float32))
        for i in range(len(case.image_sizes))
    ]
    return settle_ties(case.config, outputs, jnp.asarray(case.image_sizes), None, reference)


def _rows(proposals: Proposals) -> list[Float[ndarray, "n 5"]]:
    boxes, scores, valid = map(np.asarray, (proposals.boxes, proposals.scores, proposals.valid))
    rows = np.concatenate([boxes, scores[..., None]], axis=-1)
    return [picture[exists] for picture, exists in zip(rows, valid, strict=True)]


def _check_shapes(case: Case, ours: Ours) -> None:
    """Refuse a case of another network than its config's, before any figure is made of it."""
    shapes = {
        "c_mean_": [mean.shape for mean in ours.backbone_means],
        "feat_mean_": [mean.shape for mean in ours.pyramid_means],
        "cls_": [_torch_shape(level) for level in ours.objectness],
        "reg_": [_torch_shape(level) for level in ours.deltas],
    }
    for prefix, own in shapes.items():
        for j in case.indexed(prefix):
            shape = case.fields[f"{prefix}{j}"].shape
            if j >= len(own) or shape != own[j]:
                makes = list(own[j]) if j < len(own) else "no such level"
                raise UserError(
                    f"case {case.name}: {prefix}{j} is {list(shape)}, but config "
                    f"{case.config.name} makes {makes}; is it the config of this case?"
                )


def _torch_shape(level: Float[ndarray, "B Hl Wl *rest"]) -> tuple[int, ...]:
    pictures, rows, columns = level.shape[:3]
    return (pictures, level[0, 0, 0].size, rows, columns)


def _channels_last(array: Float[ndarray, "B C h w"], shape: tuple[int, ...]) -> ndarray:
    return array.transpose(0, 2, 3, 1).reshape(shape)


def _anchors(case: Case, ours: Ours) -> Measured:
    reference = case.fields["anchors"]
    sampled = ours.anchors[:: int(case.fields.get("anchors_stride", 1))]
    if sampled.shape != reference.shape:
        return Measured(np.inf, f"{len(sampled)} anchors, the reference has {len(reference)}")
    return Measured(float(np.abs(sampled - reference).max()), f"{len(ours.anchors)} anchors")


def _means(case: Case, prefix: str, ours: list[Float[ndarray, "B C"]]) -> Measured:
    return worst(
        {
            f"{prefix}{j}": relative_l2(ours[j], case.fields[f"{prefix}{j}"])
            for j in case.indexed(prefix)
        }
    )


def _head_outputs(case: Case, ours: Ours) -> Measured:
    figures = {}
    for prefix, levels in (("cls_", ours.objectness), ("reg_", ours.deltas)):
        for j in case.indexed(prefix):
            reference = _channels_last(case.fields[f"{prefix}{j}"], levels[j].shape)
            figures[f"{prefix}{j}"] = relative_l2(levels[j], reference)
    return worst(figures)


def _matching(case: Case, ours: Ours) -> Measured:
    total, details = 0.0, []
    for i, labels in enumerate(ours.labels):
        reference = case.fields[f"assigned_{i}"]
        if reference.shape != labels.shape:
            return Measured(np.inf, f"{labels.size} labels, the reference has {reference.size}")
        different = compare_labels(labels, reference, ours.anchors)
        total += different.value
        if different.value:
            details.append(f"picture {i}: {different.value:g}, first {different.detail}")
    return Measured(total, "; ".join(details) or f"{ours.labels.size} labels")


def _loss(case: Case, ours: Ours) -> Measured:
    return worst(
        {
            name: relative(ours.loss[own], float(case.fields[name]))
            for name, own in (("loss_cls", "loss_rpn_cls"), ("loss_bbox", "loss_rpn_bbox"))
        }
    )


def _trained_names(case: Case, ours: Ours) -> Measured:
    different = sorted(set(case.fields["grad_names"].tolist()) ^ set(ours.gradient_norms))
    return Measured(len(different), ", ".join(different[:3]) or f"{len(ours.gradient_norms)} names")


def _by_name(names: ndarray, norms: ndarray, ours: dict[str, float]) -> Measured:
    """The worst of the parameters that both have; the names have a row of their own."""
    shared = [
        (name, norm) for name, norm in zip(names.tolist(), norms, strict=True) if name in ours
    ]
    if not shared:
        return Measured(np.inf, "no parameter in common")
    return worst({name: relative(ours[name], float(norm)) for name, norm in shared})


def _gradients(case: Case, ours: Ours) -> Measured:
    return _by_name(case.fields["grad_names"], case.fields["grad_norms"], ours.gradient_norms)


def _sgd_moves(case: Case, ours: Ours) -> Measured:
    return _by_name(case.fields["sgd_names"], case.fields["sgd_moves"], ours.sgd_moves)


def _sgd_losses(case: Case, ours: Ours) -> Measured:
    reference = map(float, case.fields["sgd_losses"])
    return worst(
        {
            f"step {steps}": relative(own, loss)
            for steps, (own, loss) in enumerate(zip(ours.sgd_losses, reference, strict=True))
        }
    )


def _agreements(case: Case, proposals: list[Float[ndarray, "n 5"]]) -> list[ProposalAgreement]:
    return [
        compare_proposals(own, case.fields[f"proposals_{i}"]) for i, own in enumerate(proposals)
    ]


def _found(case: Case, ours: Ours) -> Measured:
    shares = [agreement.found for agreement in _agreements(case, ours.settled_proposals)]
    as_proposed = [agreement.found for agreement in _agreements(case, ours.proposals)]
    index = int(np.argmin(shares))
    return Measured(
        shares[index], f"picture {index}; {min(as_proposed):g} with equal scores in our order"
    )


def _out_of_order(case: Case, ours: Ours) -> Measured:
    return Measured(sum(a.out_of_order for a in _agreements(case, ours.proposals)))


def _repeated(case: Case, ours: Ours) -> Measured:
    return Measured(sum(a.repeated for a in _agreements(case, ours.proposals)))


TRUTH = ("image_sizes", "gt_{picture}")
PROPOSALS = ("image_sizes", "proposals_{picture}")
FEATURES = Bar(1e-5, "relative")
EXACT = Bar(0, "different")
RELATIVE = Bar(1e-3, "relative")

QUANTITIES: tuple[Quantity[Ours], ...] = (
    Quantity("anchors", Bar(1e-4, "px"), ("anchors",), _anchors),
    Quantity(
        "backbone outputs",
        FEATURES,
        ("c_mean_0",),
        lambda case, ours: _means(case, "c_mean_", ours.backbone_means),
    ),
    Quantity(
        "pyramid outputs",
        FEATURES,
        ("feat_mean_0",),
        lambda case, ours: _means(case, "feat_mean_", ours.pyramid_means),
    ),
    Quantity("head outputs", FEATURES, ("cls_0", "reg_0"), _head_outputs),
    Quantity("matching", EXACT, (*TRUTH, "assigned_{picture}"), _matching),
    Quantity("loss", Bar(1e-5, "relative"), (*TRUTH, "loss_cls", "loss_bbox"), _loss),
    Quantity("trained parameters", EXACT, ("grad_names",), _trained_names),
    Quantity("gradient norms", RELATIVE, (*TRUTH, "grad_names", "grad_norms"), _gradients),
    Quantity("SGD losses", RELATIVE, (*TRUTH, "sgd_losses"), _sgd_losses),
    Quantity("SGD moves", RELATIVE, (*TRUTH, "sgd_names", "sgd_moves"), _sgd_moves),
    Quantity("proposals found", Bar(0.995, at_least=True), PROPOSALS, _found),
    Quantity("proposals out of order", Bar(0), PROPOSALS, _out_of_order),
    Quantity("proposals repeated", Bar(0), PROPOSALS, _repeated),
)
"""The rows of a case, in their order."""
