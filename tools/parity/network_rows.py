"""Compare the network's results on a case with the reference's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rpn_jax.errors import UserError
from tools.parity.cases import Case
from tools.parity.compare import (
    ProposalAgreement,
    compare_labels,
    compare_proposals,
    relative,
    relative_l2,
    worst,
)
from tools.parity.network import Ours, run
from tools.parity.quantities import Quantity, rows_of
from tools.parity.rows import Bar, Measured, Row

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray


def network_rows(case: Case) -> list[Row]:
    """Run the network on a case and compare every quantity that the case has.

    Raises:
      UserError: the shapes of the case do not match its config.
    """
    if "images" not in case.fields:
        return rows_of(case, QUANTITIES, None)
    ours = run(case)
    _check_shapes(case, ours)
    return rows_of(case, QUANTITIES, ours)


def _check_shapes(case: Case, ours: Ours) -> None:
    """Refuse a case whose shapes belong to another config."""
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
                    f"{case.config.name} makes {makes}. Check the config of this case."
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


def level_means(case: Case, prefix: str, ours: list[Float[ndarray, "B C"]]) -> Measured:
    """Return the relative L2 difference of the worst level ``{prefix}j``."""
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


def by_name(names: ndarray, norms: ndarray, ours: dict[str, float]) -> Measured:
    """Return the worst of the parameters that both have. The names are compared in another row."""
    shared = [
        (name, norm) for name, norm in zip(names.tolist(), norms, strict=True) if name in ours
    ]
    if not shared:
        return Measured(np.inf, "no parameter in common")
    return worst({name: relative(ours[name], float(norm)) for name, norm in shared})


def _gradients(case: Case, ours: Ours) -> Measured:
    return by_name(case.fields["grad_names"], case.fields["grad_norms"], ours.gradient_norms)


def _sgd_moves(case: Case, ours: Ours) -> Measured:
    return by_name(case.fields["sgd_names"], case.fields["sgd_moves"], ours.sgd_moves)


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
        lambda case, ours: level_means(case, "c_mean_", ours.backbone_means),
    ),
    Quantity(
        "pyramid outputs",
        FEATURES,
        ("feat_mean_0",),
        lambda case, ours: level_means(case, "feat_mean_", ours.pyramid_means),
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
"""Quantities of a case, in the order of the rows."""
