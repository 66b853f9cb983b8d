"""Check an installation: versions, devices, optional packages, and one training step."""

from __future__ import annotations

import importlib.util
import math
import time
from dataclasses import replace

import jax
from rich.console import Console

from rpn_jax.config import AnchorConfig, Config, RPNHeadConfig, load_config
from rpn_jax.console import say
from rpn_jax.data.catalog import open_train_data
from rpn_jax.data.pipeline import train_batches
from rpn_jax.data.plan import plan_training
from rpn_jax.devices import devices_for_batch, unused_nvidia_device
from rpn_jax.models import init_variables
from rpn_jax.runtime import environment
from rpn_jax.training.optim import detector_optimizer
from rpn_jax.training.step import initial_state, make_step, replicate, split_batch
from rpn_jax.training.tasks import task_of

EXTRAS = {
    "torch": ("torch", "reads and writes PyTorch's .pth files"),
    "tensorflow_datasets": ("tfds", "reads TensorFlow Datasets"),
    "ray": ("ray", "shares propose and detect over a cluster"),
    "wandb": ("wandb", "sends figures to Weights & Biases"),
    "mlflow": ("mlflow", "sends figures to MLflow"),
}
"""Optional packages: the extra that installs each, and what it does."""
SCALE = (64, 64)
"""Canvas of the step, pixels. Small, so that it compiles soon."""


def check_installation(console: Console) -> int:
    """Print versions, devices and missing extras, run a training step, and return an exit code.

    Returns:
      0 if the step worked, 1 if it failed or if an NVIDIA device is not used.
    """
    facts = environment()
    say(console, f"python {facts['python']} on {facts['system']}, {facts['cpu_cores']} cores")
    for name, version in facts["packages"].items():
        say(console, f"{name} {version or 'is not installed'}")
    for device in jax.local_devices():
        say(console, f"device {device.id}: {device.device_kind}{_memory(device)}")
    for package, (extra, purpose) in EXTRAS.items():
        if importlib.util.find_spec(package) is None:
            say(console, f"optional: the extra '{extra}' {purpose}. pip install 'rpn-jax[{extra}]'")
    unused = unused_nvidia_device()
    if unused is not None:
        say(console, f"problem: {unused} exists, but JAX runs on the CPU. Install the extra cuda13")
    failure = _failing_step(console)
    if failure:
        say(console, f"problem: a training step fails: {failure}")
    return int(unused is not None or failure is not None)


def _memory(device: jax.Device) -> str:
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return "" if limit is None else f", {limit / 1e9:.1f} GB of memory for JAX"


def _small_config(pictures: int) -> Config:
    """Return a network that compiles in seconds, for batches of so many built-in pictures."""
    demo = load_config("rpn_demo")
    anchors = AnchorConfig(strides=(4, 8, 16), scales=(4.0,))
    model = replace(
        demo.model,
        backbone=replace(demo.model.backbone, num_stages=2),
        neck_channels=32,
        rpn=RPNHeadConfig(channels=32, anchors=anchors),
    )
    return replace(demo, model=model, data=replace(demo.data, scale=SCALE, batch_size=pictures))


def _failing_step(console: Console) -> str | None:
    """Run one small training step on all local devices. Return what is wrong, or None."""
    pictures = jax.local_device_count()
    config = _small_config(pictures)
    dataset = open_train_data(config.data)
    plan = plan_training(dataset, config.data)
    devices = devices_for_batch(pictures)
    start = time.perf_counter()
    try:
        variables = init_variables(config)
        optimizer, schedule = detector_optimizer(config, variables["params"], 1, pictures)
        step = make_step(task_of(config).loss_function, optimizer, schedule, 0, devices)
        state = replicate(initial_state(variables, optimizer), devices)
        batch = next(train_batches(dataset, plan, seed=0, first_step=0))
        _, metrics = step(state, split_batch(batch))
        loss = float(metrics["loss"])
    except RuntimeError as error:  # XLA's errors: memory, drivers, libraries.
        return str(error).partition("\n")[0]
    seconds = time.perf_counter() - start
    kind = f"{len(devices)} x {devices[0].device_kind}"
    say(console, f"a training step on {kind} took {seconds:.1f} s with compilation")
    return None if math.isfinite(loss) else f"its loss is {loss}"
