"""Training: the objective, the optimiser, the compiled step, and the run around it."""
