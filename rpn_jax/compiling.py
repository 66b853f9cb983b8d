"""What surrounds XLA's compiler: a cache of its programs, and the memory it leaves behind."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

import jax

from rpn_jax.output import cache_folder

MIN_COMPILE_SECONDS = 1.0
COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's name for the end of a compilation."""


def set_up_compiling() -> None:
    """Keep compiled programs between runs, and no memory that compiling them took.

    They are kept in ``$XDG_CACHE_HOME/rpn_jax/xla``, or in the folder that the user gave JAX
    (``JAX_COMPILATION_CACHE_DIR``).
    """
    _keep_programs()
    return_memory_after_compiling()


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


def _keep_programs() -> None:
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
