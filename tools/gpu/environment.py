"""Section 'environment': devices, versions and memory."""

from __future__ import annotations

import os
from collections.abc import Iterator

import jax

from rpn_jax.benchmark.figures import Row
from rpn_jax.devices import unused_nvidia_device
from rpn_jax.runtime import environment


def rows() -> Iterator[Row]:
    """Yield a row for each device, version and memory limit."""
    for name, value in _flat(environment()).items():
        yield {"what": name, "value": value}
    for device in jax.local_devices():
        statistics = device.memory_stats() or {}
        limit = statistics.get("bytes_limit")
        yield {
            "what": f"device {device.id}",
            "value": device.device_kind,
            "memory_gb": limit and limit / 1e9,
        }
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    yield {"what": "host", "value": "memory", "memory_gb": pages * page_bytes / 1e9}
    unused = unused_nvidia_device()
    yield {
        "what": "an NVIDIA device that JAX does not use",
        "value": unused or "none",
        "passed": unused is None,
    }


def _flat(values: dict[str, object]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {key: str(version) for key, version in value.items()}
        elif name != "command":
            flat[name] = str(value)
    return flat
