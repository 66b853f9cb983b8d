"""Plain loops as references for `tools.parity.compare`."""

from __future__ import annotations

import math

import numpy as np


def loop_match(
    ours: np.ndarray, reference: np.ndarray, box_tolerance: float, score_tolerance: float
) -> list[int]:
    """Return, for each reference proposal, the nearest unused one of ours within both, or -1."""
    taken: set[int] = set()
    partners = []
    for proposal in reference:
        best, best_distance = -1, math.inf
        for index, own in enumerate(ours):
            distance = max(abs(own[side] - proposal[side]) for side in range(4))
            near = distance <= box_tolerance and abs(own[4] - proposal[4]) <= score_tolerance
            if near and index not in taken and distance < best_distance:
                best, best_distance = index, distance
        taken.add(best)
        partners.append(best)
    return partners
