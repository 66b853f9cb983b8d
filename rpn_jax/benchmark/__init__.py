"""Measure speed and memory: inference by stages, the training step, PyTorch, growth, files.

``rpn-jax benchmark`` runs `command.run`. From Python: ``run(Options("rpn_demo", train=True))``.
This package needs jax, flax, optax, orbax and NumPy. PyTorch is measured if torch is installed
(torchvision's network if that is too), picture files need OpenCV, Grain and Pillow, plots need
Matplotlib. If a package is missing, the output names it and the part is skipped.
"""
