"""Settings that PyTorch is measured with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from rpn_jax.config import Precision

CompileMode = Literal["default", "reduce-overhead"]
"""Modes of `torch.compile`. "reduce-overhead" uses CUDA graphs."""


@dataclass(frozen=True)
class Variant:
    """Settings to run PyTorch with."""

    name: str
    precision: Precision
    channels_last: bool
    compile_mode: CompileMode | None = None
    """None runs the network eagerly."""

    @property
    def memory_format(self) -> torch.memory_format:
        """Order of the axes of pictures and weights in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights in inference."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32


CPU_VARIANTS = (
    Variant("eager float32", "float32", channels_last=False),
    Variant("eager float32 channels_last", "float32", channels_last=True),
)
CUDA_VARIANTS = (
    Variant("eager float32", "float32", channels_last=False),
    Variant("eager tf32", "tf32", channels_last=False),
    Variant("eager bfloat16 channels_last", "bfloat16", channels_last=True),
    Variant("compile float32", "float32", channels_last=False, compile_mode="default"),
    Variant("compile tf32 channels_last", "tf32", channels_last=True, compile_mode="default"),
    Variant(
        "compile bfloat16 channels_last", "bfloat16", channels_last=True, compile_mode="default"
    ),
    Variant(
        "compile bfloat16 channels_last CUDA graphs",
        "bfloat16",
        channels_last=True,
        compile_mode="reduce-overhead",
    ),
)


def set_precision(precision: Precision) -> None:
    """Allow or forbid TF32 for float32 operations in PyTorch.

    PyTorch has two sets of switches. This uses the older set, which also sets the newer one
    (``fp32_precision``). `torch.compile` of PyTorch 2.9 and 2.10 fails if only the newer is set.
    """
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "float32"
