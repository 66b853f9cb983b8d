"""Numbers rounded as TF32 rounds them, in NumPy."""

import numpy as np


def ten_bits(values):
    """The nearest numbers with ten bits behind the first one."""
    fraction, exponent = np.frexp(values)
    return np.ldexp(np.round(fraction * 2**11) / 2**11, exponent)
