"""Which devices are used."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from rpn_jax import devices


@pytest.mark.parametrize(
    ("present", "pictures", "used"),
    [(1, 4, 1), (2, 4, 2), (3, 4, 2), (4, 4, 4), (5, 4, 4), (8, 4, 4), (8, 12, 6), (4, 7, 1)],
)
def test_most_devices_that_divide_the_batch_are_used(
    monkeypatch: pytest.MonkeyPatch, present: int, pictures: int, used: int
) -> None:
    monkeypatch.setattr(jax, "local_devices", lambda **_: list(range(present)))
    assert devices.devices_for_batch(pictures) == list(range(used))


def test_an_nvidia_device_beside_a_cpu_backend_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there, missing = tmp_path / "nvidia0", tmp_path / "missing"
    there.touch()
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(devices, "NVIDIA_PATHS", (missing,))
    assert devices.unused_nvidia_device() is None
    monkeypatch.setattr(devices, "NVIDIA_PATHS", (missing, there))
    assert devices.unused_nvidia_device() == str(there)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert devices.unused_nvidia_device() is None


def test_a_gpu_that_is_not_used_causes_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "unused_nvidia_device", lambda: None)
    expected = f"device: {jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
    assert devices.describe_devices() == expected
    monkeypatch.setattr(devices, "unused_nvidia_device", lambda: "/dev/nvidia0")
    line, warning = devices.describe_devices().splitlines()
    assert line == expected
    assert warning.startswith("warning: /dev/nvidia0 exists, but JAX runs on the CPU.")
