"""The device: its measured peaks, the roofline they make, and its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rpn_jax.benchmark.timing import Effort, time_calls
from rpn_jax.ops.convolution import Precision, compute_dtype, lax_precision

if TYPE_CHECKING:
    from jaxtyping import Array, Float

CPU_SIZES = (2048, 2**28)
"""The side of the matrices that are multiplied, so large that arithmetic is all that counts, and
the bytes of the array that is copied, several times any cache."""
ACCELERATOR_SIZES = (16384, 2**31)
PEAK_EFFORT = Effort(runs=20, seconds=20.0)


@dataclass(frozen=True)
class Peaks:
    """The most that large, simple work reached on this device, in this run."""

    flops_per_second: float
    """Of a matrix product in the network's precision."""
    bytes_per_second: float
    """Of a copy, bytes read and bytes written."""

    def roofline_seconds(self, flops: float, bytes_accessed: float) -> float:
        """The time below which such work cannot be done (Williams et al. 2009)."""
        return max(flops / self.flops_per_second, bytes_accessed / self.bytes_per_second)


def measure_peaks(precision: Precision) -> Peaks:
    """Time a large matrix product in this precision and a large copy."""
    matrix_side, copy_bytes = CPU_SIZES if jax.default_backend() == "cpu" else ACCELERATOR_SIZES
    return peaks_of(precision, matrix_side, copy_bytes)


def peaks_of(precision: Precision, matrix_side: int, copy_bytes: int) -> Peaks:
    """`measure_peaks` with a square matrix of ``matrix_side`` and an array of ``copy_bytes``."""

    @jax.jit
    def product(a: Float[Array, "n n"], b: Float[Array, "n n"]) -> Float[Array, "n n"]:
        return jnp.matmul(a, b, precision=lax_precision(precision))

    @jax.jit
    def copy(values: Float[Array, " n"]) -> Float[Array, " n"]:
        return -values  # a bare copy would be compiled away

    # Random numbers: zeros are known to run faster on GPUs.
    keys = jax.random.split(jax.random.key(0))
    a, b = (
        jax.random.normal(key, (matrix_side, matrix_side)).astype(compute_dtype(precision))
        for key in keys
    )
    values = jax.random.normal(keys[0], (copy_bytes // 4,))
    of_product = time_calls(lambda: product(a, b), PEAK_EFFORT)
    of_copy = time_calls(lambda: copy(values), PEAK_EFFORT)
    return Peaks(2 * matrix_side**3 / of_product.p10, 2 * values.nbytes / of_copy.p10)


def peak_device_bytes() -> int | None:
    """The most memory of the first device that this process held so far; None where unknown."""
    statistics = jax.local_devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] if statistics else None
