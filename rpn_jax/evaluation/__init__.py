"""Measures of proposals against the ground truth."""
