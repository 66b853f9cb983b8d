"""Convert PyTorch weights. Besides the benchmark, only this package imports ``torch``.

``tables`` lists the key names of each model zoo. ``download`` and ``read`` load a source as arrays
and execute no code in it. ``match`` renames the keys and finds the config. ``style`` detects the
style of a backbone, 'pytorch' or 'caffe'. ``conversion`` writes folders of weights and ``.pth``
files, and ``report`` describes a conversion. ``initial`` loads ``train.init_weights``.
"""

from rpn_jax.weights.torch.conversion import convert, to_torch
from rpn_jax.weights.torch.initial import initial_variables, published_backbone
from rpn_jax.weights.torch.report import print_report

__all__ = ["convert", "initial_variables", "print_report", "published_backbone", "to_torch"]
