"""Compare proposals with the ground truth."""
