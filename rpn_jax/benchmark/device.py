"""Measure the peak rates of the device, and compute the roofline."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rpn_jax.benchmark.progress import say
from rpn_jax.benchmark.timing import Effort, time_calls
from rpn_jax.config import Precision
from rpn_jax.ops.precision import compute_dtype, lax_precision

if TYPE_CHECKING:
    from jaxtyping import Array, Float

CPU_SIZES = (2048, 2**28)
"""Side of the multiplied matrices, and bytes of the copied array. The matrices are so large that
only arithmetic limits their product. The array is several times larger than any cache."""
ACCELERATOR_SIZES = (16384, 2**31)
PEAK_EFFORT = Effort(runs=20, seconds=20.0)


@dataclass(frozen=True)
class Peaks:
    """Highest rates that large, simple operations reached on this device in this run."""

    flops_per_second: float
    """Rate of a matrix product in the network's precision."""
    bytes_per_second: float
    """Rate of a copy: bytes read plus bytes written."""

    def roofline_seconds(self, flops: float, bytes_accessed: float) -> float:
        """Return the shortest possible time of such work (Williams et al. 2009)."""
        return max(flops / self.flops_per_second, bytes_accessed / self.bytes_per_second)


@cache
def measured_peaks(precision: Precision) -> Peaks:
    """Return the rates of a large matrix product in this precision, and of a large copy.

    They are measured in the first call.
    """
    say(f"peaks in {precision}")
    matrix_side, copy_bytes = CPU_SIZES if jax.default_backend() == "cpu" else ACCELERATOR_SIZES
    return peaks_of(precision, matrix_side, copy_bytes)


def peaks_of(precision: Precision, matrix_side: int, copy_bytes: int) -> Peaks:
    """Measure with square matrices of ``matrix_side`` and an array of ``copy_bytes``."""

    @jax.jit
    def product(a: Float[Array, "n n"], b: Float[Array, "n n"]) -> Float[Array, "n n"]:
        return jnp.matmul(a, b, precision=lax_precision(precision))

    @jax.jit
    def copy(values: Float[Array, " n"]) -> Float[Array, " n"]:
        return -values  # XLA would remove a plain copy

    # Use random numbers: GPUs multiply zeros faster.
    keys = jax.random.split(jax.random.key(0))
    a, b = (
        jax.random.normal(key, (matrix_side, matrix_side)).astype(compute_dtype(precision))
        for key in keys
    )
    values = jax.random.normal(keys[0], (copy_bytes // 4,))
    of_product = time_calls(lambda: product(a, b), PEAK_EFFORT)
    of_copy = time_calls(lambda: copy(values), PEAK_EFFORT)
    return Peaks(2 * matrix_side**3 / of_product.p10, 2 * values.nbytes / of_copy.p10)
