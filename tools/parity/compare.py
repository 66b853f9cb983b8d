"""The arithmetic of the comparison, in NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rpn_jax.inference.results import PictureProposals
from tools.parity.rows import Measured

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy import ndarray

BOX_TOLERANCE = 0.05
"""Pixels that each side of the same proposal may differ by."""
SCORE_TOLERANCE = 1e-4
"""Its score may differ by this."""
ORDER_MARGIN = 1e-5
"""Proposals whose scores differ by more than this keep their order."""
SMALLEST_NORM = 1e-12
"""Stands for the norm of zeros, so that nothing is divided by 0."""


def relative_l2(ours: Float[ndarray, "..."], reference: Float[ndarray, "..."]) -> float:
    """|ours - reference| / |reference|, in float64."""
    reference = reference.astype(np.float64)
    distance = float(np.linalg.norm(ours.astype(np.float64) - reference))
    return distance / max(float(np.linalg.norm(reference)), SMALLEST_NORM)


def relative(ours: float, reference: float) -> float:
    """|ours - reference| / |reference|."""
    return abs(ours - reference) / max(abs(reference), SMALLEST_NORM)


def worst(figures: dict[str, float]) -> Measured:
    """The largest figure (a NaN before all others) and its name."""
    names = list(figures)
    index = int(np.argmax([figures[name] for name in names]))
    return Measured(figures[names[index]], names[index])


def compare_labels(
    ours: Int[ndarray, " K"], reference: Int[ndarray, " K"], anchors_xyxy: Float[ndarray, "K 4"]
) -> Measured:
    """Number of anchors of a picture whose labels differ, and the first of them.

    Labels are -2 absent, -1 ignored, 0 negative, k positive for box k - 1.
    """
    different = np.flatnonzero(ours != reference)
    if not len(different):
        return Measured(0)
    first = different[0]
    box = ", ".join(f"{side:g}" for side in anchors_xyxy[first])
    text = f"anchor {first} ({box}): ours {ours[first]}, reference {reference[first]}"
    return Measured(len(different), text)


def proposal_rows(picture: PictureProposals) -> Float[ndarray, "n 5"]:
    """The proposals of a picture as they are compared here: xyxy and score."""
    return np.concatenate([picture.boxes_xyxy, picture.scores[:, None]], axis=1)


class ProposalAgreement(NamedTuple):
    """How the proposals of one picture agree."""

    found: float
    """Share of the same proposals among the larger of both sets."""
    out_of_order: int
    """Proposals that come before a clearly better one."""
    repeated: int
    """Proposals of ours that repeat another one, beyond those that the reference repeats."""


def compare_proposals(
    ours: Float[ndarray, "n 5"], reference: Float[ndarray, "m 5"]
) -> ProposalAgreement:
    """Compare two sets of proposals, xyxy and score, both best first."""
    partners = match_proposals(ours, reference)
    most = max(len(ours), len(reference))
    return ProposalAgreement(
        found=float(np.count_nonzero(partners >= 0) / most) if most else 1.0,
        out_of_order=count_out_of_order(partners, reference[:, 4]),
        repeated=max(count_repeats(ours) - count_repeats(reference), 0),
    )


def match_proposals(
    ours: Float[ndarray, "n 5"],
    reference: Float[ndarray, "m 5"],
    box_tolerance: float = BOX_TOLERANCE,
    score_tolerance: float = SCORE_TOLERANCE,
) -> Int[ndarray, " m"]:
    """For each proposal of the reference the position of the same one in ours, or -1.

    The same is within both tolerances; of several the nearest box is taken, and none is taken
    twice.

    Args:
      ours: xyxy pixels and score.
      reference: likewise; the first is matched first.
      box_tolerance: pixels that each side may differ by.
      score_tolerance: the score may differ by this.
    """
    by_x1 = np.argsort(ours[:, 0])  # so that few boxes need to be looked at; NaN come last
    x1 = ours[by_x1, 0]
    firsts = np.searchsorted(x1, reference[:, 0] - 2 * box_tolerance)
    lasts = np.searchsorted(x1, reference[:, 0] + 2 * box_tolerance)
    partners = np.full(len(reference), -1, np.int64)
    free = np.ones(len(ours), bool)
    for row, (proposal, first, last) in enumerate(zip(reference, firsts, lasts, strict=True)):
        near = by_x1[first:last]
        differences = np.abs(ours[near] - proposal)
        distance = differences[:, :4].max(axis=1)
        same = (distance <= box_tolerance) & (differences[:, 4] <= score_tolerance) & free[near]
        if same.any():
            partner = near[np.argmin(np.where(same, distance, np.inf))]
            partners[row] = partner
            free[partner] = False
    return partners


def count_out_of_order(partners: Int[ndarray, " m"], scores: Float[ndarray, " m"]) -> int:
    """Matched proposals that come, in ours, before one whose score is higher by the margin.

    Args:
      partners: of `match_proposals`.
      scores: of the reference, descending.
    """
    found = partners >= 0
    positions, scores = partners[found], scores[found].astype(np.float64)
    # Of the scores before each row, those up to here are higher by more than the margin.
    clearly_better = np.searchsorted(-scores, -(scores + ORDER_MARGIN), side="left")
    last_of_better = np.concatenate([[-1], np.maximum.accumulate(positions)])[clearly_better]
    return int(np.count_nonzero(positions < last_of_better))


def count_repeats(proposals: Float[ndarray, "n 5"]) -> int:
    """Proposals that equal an earlier one in box and score."""
    return len(proposals) - len(np.unique(proposals, axis=0))
