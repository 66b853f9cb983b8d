"""Arithmetic of the comparison, in NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tools.parity.rows import Measured

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy import ndarray

    from rpn_jax.inference.results import PictureProposals
    from rpn_jax.structures import Detections

BOX_TOLERANCE = 0.05
"""Maximum difference of each side of two proposals that count as the same, in pixels."""
SCORE_TOLERANCE = 1e-4
"""Maximum difference of their scores."""
ORDER_MARGIN = 1e-5
"""Proposals whose scores differ by more than this must be in the same order."""
SMALLEST_NORM = 1e-12
"""Replaces the norm of zeros, to avoid division by 0."""


def relative_l2(ours: Float[ndarray, "..."], reference: Float[ndarray, "..."]) -> float:
    """Return |ours - reference| / |reference|, computed in float64."""
    reference = reference.astype(np.float64)
    distance = float(np.linalg.norm(ours.astype(np.float64) - reference))
    return distance / max(float(np.linalg.norm(reference)), SMALLEST_NORM)


def relative(ours: float, reference: float) -> float:
    """Return |ours - reference| / |reference|."""
    return abs(ours - reference) / max(abs(reference), SMALLEST_NORM)


def worst(figures: dict[str, float]) -> Measured:
    """Return the largest figure and its name. NaN counts as larger than all others."""
    names = list(figures)
    index = int(np.argmax([figures[name] for name in names]))
    return Measured(figures[names[index]], names[index])


def compare_labels(
    ours: Int[ndarray, " K"], reference: Int[ndarray, " K"], anchors_xyxy: Float[ndarray, "K 4"]
) -> Measured:
    """Return how many anchors of a picture have different labels, and describe the first.

    Labels: -2 no such anchor, -1 ignored, 0 negative, k positive for box k - 1.
    """
    different = np.flatnonzero(ours != reference)
    if not len(different):
        return Measured(0)
    first = different[0]
    box = ", ".join(f"{side:g}" for side in anchors_xyxy[first])
    text = f"anchor {first} ({box}): ours {ours[first]}, reference {reference[first]}"
    return Measured(len(different), text)


def proposal_rows(picture: PictureProposals) -> Float[ndarray, "n 5"]:
    """Return the proposals of a picture in one array: xyxy and score."""
    return np.concatenate([picture.boxes_xyxy, picture.scores[:, None]], axis=1)


def detection_rows(detections: Detections) -> list[Float[ndarray, "n 6"]]:
    """Return the detections of each picture in one array: xyxy, score and class."""
    rows = np.concatenate(
        [detections.boxes, detections.scores[..., None], detections.labels[..., None]], axis=-1
    )
    return [picture[valid] for picture, valid in zip(rows, detections.valid, strict=True)]


def count_found(ours: Float[ndarray, "n 6"], reference: Float[ndarray, "m 6"]) -> int:
    """Return the number of the reference's detections that have a partner of the same class.

    Boxes and scores are matched as by `match_proposals`.
    """
    found = 0
    for label in np.unique(reference[:, 5]):
        own, theirs = (rows[rows[:, 5] == label, :5] for rows in (ours, reference))
        found += int(np.count_nonzero(match_proposals(own, theirs) >= 0))
    return found


class ProposalAgreement(NamedTuple):
    """Agreement of two sets of proposals of one picture."""

    found: float
    """Number of matched proposals divided by the size of the larger set."""
    out_of_order: int
    """Number of proposals that come before a clearly better one."""
    repeated: int
    """Number of repeated proposals in ours, minus those in the reference."""


def compare_proposals(
    ours: Float[ndarray, "n 5"], reference: Float[ndarray, "m 5"]
) -> ProposalAgreement:
    """Compare two sets of proposals. Rows are xyxy and score, best first."""
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
    """Return, for each proposal of the reference, the index of the same proposal in ours, or -1.

    Two proposals are the same if they are within both tolerances. If several are, the nearest box
    is used. Each of ours is used once at most.

    Args:
      ours: xyxy in pixels, and score.
      reference: as ``ours``. They are matched in their order.
      box_tolerance: maximum difference of each side, in pixels.
      score_tolerance: maximum difference of the scores.
    """
    by_x1 = np.argsort(ours[:, 0])  # only boxes with a similar x1 are compared; NaN is last
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
    """Count matched proposals that come before one with a clearly higher score in ours.

    Args:
      partners: result of `match_proposals`.
      scores: scores of the reference, descending. "Clearly" means by more than `ORDER_MARGIN`.
    """
    found = partners >= 0
    positions, scores = partners[found], scores[found].astype(np.float64)
    # For each row: the number of scores that are higher by more than the margin.
    clearly_better = np.searchsorted(-scores, -(scores + ORDER_MARGIN), side="left")
    last_of_better = np.concatenate([[-1], np.maximum.accumulate(positions)])[clearly_better]
    return int(np.count_nonzero(positions < last_of_better))


def count_repeats(proposals: Float[ndarray, "n 5"]) -> int:
    """Count the proposals that equal an earlier one in box and score."""
    return len(proposals) - len(np.unique(proposals, axis=0))
