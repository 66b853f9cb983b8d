"""Check that all processes of a run do the same work. With one process, nothing is checked."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from rpn_jax.config import Config, config_changes
from rpn_jax.data.dataset import Dataset
from rpn_jax.errors import UserError
from rpn_jax.hosts.exchange import gather
from rpn_jax.structures import Variables
from rpn_jax.weights.trees import by_name, checksums, host_copy

OF_ONE_HOST = (
    "name",
    "data.dataset",
    "data.root",
    "data.train_annotations",
    "data.train_images",
    "data.eval_annotations",
    "data.eval_images",
    "data.train_also",
    "data.class_map",
    "data.loader_threads",
    "train.init_weights",
)
"""Keys that may differ between hosts: where files lie, and how many threads read them. What was
read is compared instead."""


def check_same_inputs(config: Config, datasets: Sequence[tuple[str, Dataset]]) -> None:
    """Check that all processes use the same settings, pictures and boxes.

    Args:
      config: the config of this process.
      datasets: the datasets of this process, each with its name for messages.

    Raises:
      UserError: they do not. It is raised in every process.
    """
    if jax.process_count() == 1:
        return
    sums = [_checksum(dataset) for _, dataset in datasets]
    (first_config, first_sums), *others = gather((config, sums))
    for process, (other_config, other_sums) in enumerate(others, start=1):
        for key, first, other in config_changes(first_config, other_config):
            if key not in OF_ONE_HOST:
                raise UserError(
                    f"{key} = {other!r}: in process {process}, but {first!r} in process 0. Give "
                    "all processes the same config and flags."
                )
        for (name, _), first_sum, other_sum in zip(datasets, first_sums, other_sums, strict=True):
            if first_sum != other_sum:
                raise UserError(
                    f"{name}: process {process} finds other pictures, boxes or classes in it than "
                    "process 0. Use the same dataset on all hosts."
                )


def _checksum(dataset: Dataset) -> int:
    """Return a CRC-32 of the classes, and of the ids, sizes and objects of the pictures."""
    total = zlib.crc32(repr((dataset.class_names, dataset.category_ids)).encode())
    for picture in dataset.pictures:
        objects = picture.objects
        total = zlib.crc32(f"{picture.image_id} {picture.height} {picture.width}".encode(), total)
        for array in (objects.boxes_xywh, objects.labels, objects.is_crowd, objects.is_difficult):
            total = zlib.crc32(np.ascontiguousarray(array).data, total)
    return total


def check_same_step(workdir: Path, step: int) -> None:
    """Check that all processes found the same checkpoint.

    Raises:
      UserError: they did not. The message is the same in every process.
    """
    first, *others = gather(step)
    for process, other in enumerate(others, start=1):
        if other != first:
            raise UserError(
                f"--workdir {workdir}: process {process} finds the checkpoint of step {other} in "
                f"it, and process 0 that of step {first}. Use a folder that all hosts share."
            )


def check_same_weights(variables: Variables) -> None:
    """Check that all processes have the same weights.

    Raises:
      UserError: they have not. The message is the same in every process.
    """
    if jax.process_count() == 1:
        return
    first, *others = gather(checksums(host_copy(by_name(variables))))
    for process, sums in enumerate(others, start=1):
        different = [name for name, value in sums.items() if value != first.get(name)]
        if different:
            raise UserError(
                f"'{different[0]}' has other weights in process {process} than in process 0. Use "
                "the same config, weights and versions on all hosts."
            )
