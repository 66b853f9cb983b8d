"""Weights on disk: folders of weights, checkpoints of a run, and PyTorch files."""
