"""Training: loss functions, optimiser, compiled step, the loop around it, and whole runs."""
