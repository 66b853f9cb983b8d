"""PyTorch weights in and out; the only home of ``torch`` beside the benchmark.

``tables`` holds the names of each zoo as data, ``download`` and ``read`` turn a source into arrays
without running anything in it, ``match`` brings them under this package's names and finds the
config, ``style`` tells 'pytorch' from 'caffe', ``conversion`` writes folders and ``.pth`` files,
``initial`` serves ``train.init_weights``.
"""

from rpn_jax.weights.torch.conversion import convert, to_torch
from rpn_jax.weights.torch.initial import initial_variables, published_backbone
from rpn_jax.weights.torch.report import print_report

__all__ = ["convert", "initial_variables", "print_report", "published_backbone", "to_torch"]
