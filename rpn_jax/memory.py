"""Memory that the compiler leaves behind."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's name for the end of a compilation."""


@cache
def return_memory_after_compiling() -> None:
    """Have what XLA's compiler frees given back to the system, after every compilation.

    It frees hundreds of MB in small pieces, which glibc keeps for more of them, while the compiled
    program asks for its own memory in one piece: the process would hold both. Other C libraries
    are left alone.
    """
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return

    def give_back(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(give_back)
