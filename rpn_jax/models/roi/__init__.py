"""The second stage: the RoI head, its targets, its loss and its detections."""

DELTA_STDS = (0.1, 0.1, 0.2, 0.2)
"""The head's deltas are (dx, dy, dw, dh) divided by these numbers (Girshick 2015, section 2.3)."""
