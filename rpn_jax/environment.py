"""What figures depend on beside their config: versions, device, command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

import jax

from rpn_jax import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "torchvision")


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
