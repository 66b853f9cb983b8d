"""What surrounds a run: versions and device, the cache of compiled programs, freed memory."""

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
"""JAX's name for the end of a compilation."""


def environment() -> dict[str, Any]:
    """Versions, device and command, for whoever reads the figures later; plain JSON values."""
    devices = jax.local_devices()
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": devices[0].device_kind,
        "backend": jax.default_backend(),
        "devices": len(devices),
        "cpu_cores": cpu_cores(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "packages": {"rpn_jax": __version__, **{name: _version(name) for name in PACKAGES}},
    }


def cpu_cores() -> int:
    """Cores that this process may use; all of the machine where the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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
