"""Load and save weights: folders of weights, checkpoints of a run, and PyTorch files."""
