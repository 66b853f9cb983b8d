"""The devices to compute on: platform, mesh, and how many share a batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpn_jax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import jax
    from jax.sharding import Mesh

NVIDIA_PATHS = (Path("/proc/driver/nvidia"), Path("/dev/nvidia0"))
"""Paths of which at least one exists where NVIDIA's driver runs."""
GPU_FLAGS = {
    "xla_gpu_exclude_nondeterministic_ops": "true",
    "xla_gpu_enable_command_buffer": "+CONVOLUTION,+WHILE,+CONDITIONAL",
}
"""Flags of XLA for NVIDIA GPUs. With the first one, a compiled program gives the same bits in every
run. The second starts whole programs as one CUDA graph, so that the GPU does not wait for the host
between kernels."""
CPU_INFERENCE_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""Options of XLA for inference on CPUs: it multiplies matrices with Eigen, not with YNNPACK, which
takes longer for large ones. Training has many small ones and takes longer with Eigen."""
JAX_OF_CPU_OPTIONS = ((0, 10), (0, 12))
"""The first version of JAX that is known to have `CPU_INFERENCE_OPTIONS`, and the first one that
was not tried. XLA refuses an option that it does not have."""


def use_platform(platform: str) -> None:
    """Start JAX on the CPU, or make sure that it started on a GPU; 'auto' takes what it prefers.

    Where an NVIDIA GPU may be used, `use_gpu_flags` comes first.

    Raises:
      UserError: JAX does not start, or sees no GPU where one is asked for.
    """
    import jax

    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif _nvidia_path() is not None:
        use_gpu_flags()
    try:
        backend = jax.default_backend()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"--platform {platform}: JAX does not start ({reason})") from None
    if platform == "gpu" and backend != "gpu":
        raise UserError(
            f"--platform gpu: JAX sees no GPU, only '{backend}' "
            "(the extras cuda12 and cuda13 install JAX for NVIDIA GPUs)"
        )


def use_gpu_flags() -> None:
    """Add `GPU_FLAGS` to the environment variable ``XLA_FLAGS``, without those that it sets itself.

    XLA reads the variable once, when JAX starts on a device.
    """
    own = os.environ.get("XLA_FLAGS", "")
    missing = [f"--{name}={value}" for name, value in GPU_FLAGS.items() if name not in own]
    os.environ["XLA_FLAGS"] = " ".join(filter(None, [own, *missing]))


def jit_inference(function: Callable[..., Any]) -> jax.stages.Wrapped:
    """Return ``jax.jit(function)``, on CPUs compiled with `CPU_INFERENCE_OPTIONS`."""
    import jax

    first, end = JAX_OF_CPU_OPTIONS
    is_known = first <= jax.__version_info__[:2] < end
    options = CPU_INFERENCE_OPTIONS if is_known and jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)


def unused_nvidia_device() -> str | None:
    """Return the path of an NVIDIA device if JAX runs on the CPU all the same, None otherwise."""
    import jax

    if jax.default_backend() != "cpu":
        return None
    return _nvidia_path()


def _nvidia_path() -> str | None:
    return next((str(path) for path in NVIDIA_PATHS if path.exists()), None)


def describe_devices() -> str:
    """Return one line that names the local devices, with a warning if a GPU is not used."""
    import jax

    devices = jax.local_devices()
    line = f"device: {len(devices)} x {devices[0].device_kind}"
    unused = unused_nvidia_device()
    if unused is None:
        return line
    return (
        f"{line}\nwarning: {unused} exists, but JAX runs on the CPU. Install the extra cuda13 to "
        "use the GPU, or choose --platform gpu to see the reason."
    )


def devices_for_batch(pictures: int) -> list[jax.Device]:
    """Return the devices that share a batch evenly: as many as possible, in order of the process.

    Each process has the same number of them.

    Args:
      pictures: number of pictures in the batch, over all processes.

    Raises:
      UserError: the pictures cannot be divided among the processes.
    """
    import jax

    processes = jax.process_count()
    if pictures % processes:
        raise UserError(
            f"data.batch_size = {pictures}: must be a multiple of {processes}, the number of "
            "processes."
        )
    present = len(jax.local_devices())
    count = max(n for n in range(1, present + 1) if pictures // processes % n == 0)
    return [
        device
        for process in range(processes)
        for device in jax.local_devices(process_index=process)[:count]
    ]


def cpu_device() -> jax.Device | None:
    """Return a CPU as a device of JAX, or None if JAX was started without CPUs."""
    import jax

    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def peak_memory() -> int | None:
    """Return the largest memory that a local device has used so far, in bytes.

    None if the backend does not report it, as on CPUs.
    """
    import jax

    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [values.get("peak_bytes_in_use") for values in statistics]
    return max((peak for peak in peaks if peak is not None), default=None)


def device_mesh(axis: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return devices, by default all local ones, as a mesh with one axis of that name."""
    import jax
    import numpy as np
    from jax.sharding import Mesh

    return Mesh(np.array(jax.local_devices() if devices is None else devices), (axis,))
