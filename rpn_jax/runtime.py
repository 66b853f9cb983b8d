"""Describe the environment of a run, and set up the compilation cache and the memory of XLA."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import sys
from functools import cache
from typing import Any

import jax

from rpn_jax import __version__
from rpn_jax.files import cache_folder

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "torchvision")

MIN_COMPILE_SECONDS = 1.0
COMPILED = "/jax/core/compile/backend_compile_duration"
"""Event that JAX reports at the end of a compilation."""


def environment() -> dict[str, Any]:
    """Return versions, device and command, which are stored with the results, as JSON values."""
    devices = jax.local_devices()
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": devices[0].device_kind,
        "backend": jax.default_backend(),
        "devices": len(devices),
        "processes": jax.process_count(),
        "cpu_cores": cpu_cores(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "packages": {"rpn_jax": __version__, **{name: _version(name) for name in PACKAGES}},
    }


def cpu_cores() -> int:
    """Return the number of cores that this process may use. Some systems only report all cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def loader_threads(wanted: int) -> int:
    """Return the number of threads for a value of ``data.loader_threads``. 0: by `cpu_cores`."""
    return wanted or min(max(cpu_cores(), 4), 32)


def _version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def set_up_compiling() -> None:
    """Turn on the cache of compiled programs, and release the memory that compilations leave.

    The cache is ``$XDG_CACHE_HOME/rpn_jax/xla``, or the folder in ``JAX_COMPILATION_CACHE_DIR``.
    """
    _use_compilation_cache()
    return_memory_after_compiling()


@cache
def return_memory_after_compiling() -> None:
    """Return the memory that XLA's compiler has freed to the system after each compilation.

    The compiler frees hundreds of MB in small blocks. glibc keeps them for other small blocks, but
    the compiled program needs large ones, so the process would hold both. Nothing is done with
    other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return

    def trim_memory(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(trim_memory)


def _use_compilation_cache() -> None:
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
