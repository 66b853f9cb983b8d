"""The networks. Only this package imports ``flax.linen``."""

from rpn_jax.models.detectors import RPN, init_variables, variable_shapes

__all__ = ["RPN", "init_variables", "variable_shapes"]
