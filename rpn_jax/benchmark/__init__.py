"""Measured speed: stages, training step, peers, growth; ``python -m rpn_jax.benchmark --help``.

Needs jax, flax, optax and NumPy; torch and torchvision for the peers, OpenCV and Grain for
picture files, Matplotlib for plots. What is not installed is left out, and the output says so.
"""
