"""Folders of weights, which hold ``config.json`` and ``variables``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from rpn_jax.config import Config, config_changes, load_config, save_config
from rpn_jax.errors import UserError, reading, writing
from rpn_jax.files import make_folder
from rpn_jax.weights.checkpoints import CHECKPOINTS, VARIABLES, best_step_folder
from rpn_jax.weights.trees import host_copy, read_item, write_item

CONFIG_FILE = "config.json"

SAME_FUNCTION = (
    "model.precision",
    "model.backbone.frozen_stages",
    "model.backbone.train_norm",
)
"""Keys of a model that may differ between weights and their use: they decide how it is trained and
rounded, not what it computes."""


def save_variables(folder: str | Path, config: Config, variables: Any) -> None:
    """Write a folder of weights: ``config.json`` and ``variables``.

    The folder appears whole or not at all.

    Args:
      folder: a folder that does not exist yet.
      config: the config that the weights belong to.
      variables: nested dicts of arrays: ``params`` and, with batch statistics, ``batch_stats``.

    Raises:
      UserError: a folder that exists and is not empty, or that cannot be written.
    """
    folder = Path(folder)
    check_new_folder(folder)
    make_folder(folder.parent)
    temporary = folder.resolve().with_name(f".{folder.resolve().name}.{os.getpid()}.tmp")
    try:
        with writing(f"weights {folder}"):
            temporary.mkdir()
            save_config(config, temporary / CONFIG_FILE)
            write_item(temporary / VARIABLES, host_copy(variables))
            temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new_folder(folder: Path) -> None:
    """Refuse to write weights where something is already; raises UserError."""
    with reading(f"weights {folder}"):
        taken = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    if taken:
        raise UserError(f"weights {folder}: exists already; name a new folder or remove this one")


def load_variables(folder: str | Path) -> dict[str, Any]:
    """Read weights.

    Args:
      folder: a folder that `save_variables` wrote; or a work directory of training, of which the
        best checkpoint is taken, or the last if none was evaluated; or one step's folder in its
        ``checkpoints``.

    Returns:
      ``params`` and, with batch statistics, ``batch_stats``: nested dicts of float32 NumPy arrays.

    Raises:
      UserError: no such folder, none of these kinds, damaged, or unreadable.
    """
    folder = Path(folder)
    with reading(f"weights {folder}"):
        variables_folder = _variables_folder(folder)
    return read_item(variables_folder)


def _variables_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"weights {folder}: no such folder")
    step_folder = best_step_folder(folder) if (folder / CHECKPOINTS).is_dir() else folder
    if not (step_folder / VARIABLES).is_dir():
        raise UserError(
            f"weights {folder}: holds no weights; expected a folder that `convert` wrote, a work "
            "directory of `train`, or one step's folder in its checkpoints"
        )
    return step_folder / VARIABLES


def check_same_model(
    config: Config, folder: str | Path, sections: tuple[str, ...] = ("model.", "pixels.")
) -> None:
    """Compare the config that weights were made with, where they hold it, with the one in use.

    Two models of equal shapes may differ in their strides' place, their pixels or their anchors.

    Args:
      config: in use.
      folder: of the weights.
      sections: what must be equal, as the openings of keys.

    Raises:
      UserError: they differ there, other than in `SAME_FUNCTION`.
    """
    folder = Path(folder)
    for path in (folder / CONFIG_FILE, folder.parent.parent / CONFIG_FILE):
        if path.is_file():
            for key, theirs, ours in config_changes(load_config(path), config):
                if key.startswith(sections) and key not in SAME_FUNCTION:
                    raise UserError(
                        f"weights {folder}: are of another model: {key} is {theirs!r} there and "
                        f"{ours!r} in the config"
                    )
            return
