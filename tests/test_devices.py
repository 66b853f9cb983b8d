"""Which devices are used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
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


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("", "--xla_gpu_first=true --xla_gpu_second=+A,+B"),
        ("--xla_cpu_other=1", "--xla_cpu_other=1 --xla_gpu_first=true --xla_gpu_second=+A,+B"),
        ("--xla_gpu_second=", "--xla_gpu_second= --xla_gpu_first=true"),
    ],
)
def test_flags_of_the_user_come_before_ours(
    monkeypatch: pytest.MonkeyPatch, own: str, expected: str
) -> None:
    monkeypatch.setattr(devices, "GPU_FLAGS", {"xla_gpu_first": "true", "xla_gpu_second": "+A,+B"})
    monkeypatch.setenv("XLA_FLAGS", own)
    devices.use_gpu_flags()
    devices.use_gpu_flags()  # as in a process that this one starts
    assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.parametrize(("platform", "added"), [("auto", True), ("cpu", False)])
def test_gpu_flags_are_set_where_a_gpu_may_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, added: bool
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(devices, "NVIDIA_PATHS", (tmp_path,))
    devices.use_platform(platform)
    assert ("xla_gpu_exclude_nondeterministic_ops" in os.environ["XLA_FLAGS"]) == added
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(devices, "NVIDIA_PATHS", ())
    devices.use_platform("auto")
    assert os.environ["XLA_FLAGS"] == ""


def test_xla_knows_the_gpu_flags() -> None:
    """XLA would end a process that sets an unknown flag, or an unknown value."""
    flags = " ".join(f"--{name}={value}" for name, value in devices.GPU_FLAGS.items())
    code = "import jax; print(jax.jit(lambda x: x + 1)(1))"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr[-300:]


@pytest.mark.parametrize("version", [(0, 9, 2), (0, 10, 0), (0, 11, 2), (0, 12, 0)])
def test_inference_has_options_in_versions_that_are_known_to_have_them(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
) -> None:
    options = []
    monkeypatch.setattr(jax, "__version_info__", version)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(jax, "jit", lambda _, compiler_options: options.append(compiler_options))
    devices.jit_inference(lambda x: x)
    known = version[1] in (10, 11)
    assert options == [devices.CPU_INFERENCE_OPTIONS if known else None]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the options are those for CPUs")
def test_ynnpack_multiplies_no_matrices_of_inference() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 64, 64)).astype(np.float32)
    compiled = devices.jit_inference(jnp.matmul).lower(x, y).compile()
    assert "ynn_fusion" not in compiled.as_text()
    np.testing.assert_allclose(compiled(x, y), x @ y, atol=1e-4)
