"""Compare the results of a Faster R-CNN on a case with the reference's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from rpn_jax.errors import UserError
from rpn_jax.ops import assign_levels
from tools.parity.cases import Case
from tools.parity.compare import count_found, relative, relative_l2, worst
from tools.parity.network import parameter_norms
from tools.parity.network_rows import EXACT, FEATURES, RELATIVE, by_name, level_means
from tools.parity.quantities import Quantity, rows_of
from tools.parity.rows import Bar, Measured, Row
from tools.parity.second_stage import FIRST_STAGE_HEAD, Step, TwoStages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from numpy import ndarray

SAMPLED_CHANNELS = 8
"""Number of channels of ``roi_features``: every C/8-th of C."""


def second_stage_rows(case: Case) -> list[Row]:
    """Run a Faster R-CNN on a case and compare every quantity that the case has.

    Raises:
      UserError: the config of the case has no second stage.
    """
    if "images" not in case.fields:
        return rows_of(case, QUANTITIES, None)
    if case.config.model.roi is None:
        raise UserError(
            f"case {case.name}: has num_classes, but config {case.config.name} has no second "
            "stage. Check the config of this case."
        )
    return rows_of(case, QUANTITIES, TwoStages(case))


def _roi_levels(case: Case, ours: TwoStages) -> Measured:
    levels = jax.jit(assign_levels, static_argnums=1)(ours.given, len(ours.model.roi_strides))
    return _different(_given_rows(ours, levels), case.fields["roi_levels"])


def _features(case: Case, ours: TwoStages) -> Measured:
    features = _given_rows(ours, ours.pooled.features)
    sampled = features[..., :: features.shape[-1] // SAMPLED_CHANNELS].transpose(0, 3, 1, 2)
    norms = np.sqrt(np.square(features, dtype=np.float64).sum(axis=(1, 2, 3)))
    return worst(
        {
            "channels": relative_l2(sampled, case.fields["roi_features"]),
            "norms": relative_l2(norms, case.fields["roi_features_norm"]),
        }
    )


def _outputs(case: Case, ours: TwoStages) -> Measured:
    logits = _given_rows(ours, ours.pooled.outputs.class_logits)
    deltas = _given_rows(ours, ours.pooled.outputs.deltas)
    return worst(
        {
            "class_logits": relative_l2(logits, case.fields["class_logits"]),
            "box_deltas": relative_l2(deltas.reshape(len(deltas), -1), case.fields["box_deltas"]),
        }
    )


def _given_rows(ours: TwoStages, values: jax.Array) -> ndarray:
    """Return the values of the given boxes that exist, those of picture 0 first."""
    return np.asarray(values)[np.asarray(ours.given_mask)]


def _matching(case: Case, ours: TwoStages) -> Measured:
    reference = [case.fields[f"assigned_{i}"] for i in range(len(ours.assigned))]
    return _different(_given_rows(ours, jnp.asarray(ours.assigned)), np.concatenate(reference))


def _different(ours: ndarray, reference: ndarray) -> Measured:
    rows = np.flatnonzero(ours != reference)
    if not len(rows):
        return Measured(0, f"{len(reference)} boxes")
    first = rows[0]
    return Measured(len(rows), f"box {first}: ours {ours[first]}, reference {reference[first]}")


def _given_detections(case: Case, ours: TwoStages) -> Measured:
    return _found(_detections(case, "detections_given_"), ours.given_detections)


def _whole_detections(case: Case, ours: TwoStages) -> Measured:
    reference = _detections(case, "detections_")
    as_detected = _found(reference, ours.detections)
    settled = _found(reference, ours.settled_detections)
    return Measured(
        settled.value, f"{settled.detail}; {as_detected.value:g} with equal scores in our order"
    )


def _detections(case: Case, prefix: str) -> list[Float[ndarray, "m 6"]]:
    return [case.fields[f"{prefix}{i}"] for i in case.indexed(prefix)]


def _found(
    reference: Sequence[Float[ndarray, "m 6"]], ours: Sequence[Float[ndarray, "n 6"]]
) -> Measured:
    """Return the share of found detections in the larger set, over all pictures."""
    pairs = list(zip(ours, reference, strict=True))
    found = sum(count_found(*pair) for pair in pairs)
    total = sum(max(map(len, pair)) for pair in pairs)
    return Measured(found / total if total else 1.0, f"{found} of {total}")


def _given_loss(case: Case, ours: TwoStages) -> Measured:
    return _losses(case, "loss_given_", ours.given_step, ("cls", "bbox"))


def _joint_loss(case: Case, ours: TwoStages) -> Measured:
    names = ("rpn_cls", "rpn_bbox", "cls", "bbox")
    return _losses(case, "joint_loss_", ours.joint_step, names)


def _losses(case: Case, prefix: str, step: Step, names: Sequence[str]) -> Measured:
    return worst(
        {
            name: relative(float(step.loss[f"loss_{name}"]), float(case.fields[prefix + name]))
            for name in names
        }
    )


def _accuracy(case: Case, ours: TwoStages) -> Measured:
    own = float(ours.given_step.accuracy)
    return Measured(abs(own - float(case.fields["acc_given"])), f"{own:g}%")


def _trained_names(case: Case, ours: TwoStages) -> Measured:
    """Compare the names of the trained parameters. Those of the RPN head are optional.

    The loss of given boxes does not depend on them.
    """
    trained = set(parameter_norms(ours.variables["params"], ours.trainable))
    optional = {name for name in trained if name.startswith(FIRST_STAGE_HEAD)}
    names = set(case.fields["given_grad_names"].tolist())
    joint = set(case.fields.get("joint_grad_names", np.array(sorted(trained))).tolist())
    different = sorted((names ^ (trained - optional)) | (joint ^ trained))
    return Measured(len(different), ", ".join(different[:3]) or f"{len(trained)} names")


def _given_gradients(case: Case, ours: TwoStages) -> Measured:
    return _gradients(case, "given_grad_", ours, ours.given_step)


def _joint_gradients(case: Case, ours: TwoStages) -> Measured:
    return _gradients(case, "joint_grad_", ours, ours.joint_step)


def _gradients(case: Case, prefix: str, ours: TwoStages, step: Step) -> Measured:
    norms = parameter_norms(jax.device_get(step.gradients), ours.trainable)
    return by_name(case.fields[f"{prefix}names"], case.fields[f"{prefix}norms"], norms)


def _sgd_losses(case: Case, ours: TwoStages) -> Measured:
    pairs = zip(ours.given_descent.losses, case.fields["sgd_given_losses"], strict=True)
    return worst({f"step {i}": relative(own, float(loss)) for i, (own, loss) in enumerate(pairs)})


def _sgd_moves(case: Case, ours: TwoStages) -> Measured:
    names, moves = case.fields["sgd_given_names"], case.fields["sgd_given_moves"]
    return by_name(names, moves, ours.given_descent.moves)


GIVEN = ("image_sizes", "given_{picture}")
TRUTH = ("gt_{picture}", "gt_labels_{picture}")
JOINT = (*TRUTH, "joint_loss_rpn_cls", "joint_loss_rpn_bbox", "joint_loss_cls", "joint_loss_bbox")
LOSS = Bar(1e-5, "relative")

QUANTITIES: tuple[Quantity[TwoStages], ...] = (
    Quantity(
        "pyramid outputs",
        FEATURES,
        ("feat_mean_0",),
        lambda case, ours: level_means(
            case, "feat_mean_", [np.asarray(mean) for mean in ours.pooled.level_means]
        ),
    ),
    Quantity("RoI levels", EXACT, (*GIVEN, "roi_levels"), _roi_levels),
    Quantity("RoI features", FEATURES, (*GIVEN, "roi_features", "roi_features_norm"), _features),
    Quantity("second stage outputs", FEATURES, (*GIVEN, "class_logits", "box_deltas"), _outputs),
    Quantity(
        "detections of given boxes",
        Bar(0.999, at_least=True),
        (*GIVEN, "detections_given_{picture}"),
        _given_detections,
    ),
    Quantity("matching of given boxes", EXACT, (*GIVEN, *TRUTH, "assigned_{picture}"), _matching),
    Quantity(
        "loss of given boxes",
        LOSS,
        (*GIVEN, *TRUTH, "loss_given_cls", "loss_given_bbox"),
        _given_loss,
    ),
    Quantity("accuracy", Bar(1e-3, "percent"), (*GIVEN, *TRUTH, "acc_given"), _accuracy),
    Quantity("trained parameters", EXACT, ("given_grad_names",), _trained_names),
    Quantity(
        "gradient norms, given boxes",
        RELATIVE,
        (*GIVEN, *TRUTH, "given_grad_names", "given_grad_norms"),
        _given_gradients,
    ),
    Quantity(
        "SGD losses, given boxes", RELATIVE, (*GIVEN, *TRUTH, "sgd_given_losses"), _sgd_losses
    ),
    Quantity(
        "SGD moves, given boxes",
        RELATIVE,
        (*GIVEN, *TRUTH, "sgd_given_names", "sgd_given_moves"),
        _sgd_moves,
    ),
    Quantity("joint loss", Bar(1e-4, "relative"), JOINT, _joint_loss),
    Quantity("gradient norms, joint", RELATIVE, (*JOINT, "joint_grad_names"), _joint_gradients),
    Quantity(
        "detections found",
        Bar(0.99, at_least=True),
        ("image_sizes", "detections_{picture}"),
        _whole_detections,
    ),
)
"""Quantities of a case, in the order of the rows."""
