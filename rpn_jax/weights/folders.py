"""Load and save folders of weights. Such a folder holds ``config.json`` and ``variables``."""

from __future__ import annotations

import os
import shutil
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from rpn_jax.config import (
    CONFIG_FILE,
    Config,
    check_part,
    config_changes,
    config_file_of,
    load_config,
    save_config,
)
from rpn_jax.errors import UserError, reading, writing
from rpn_jax.files import make_folder
from rpn_jax.weights.checkpoints import CHECKPOINTS, VARIABLES, best_step_folder, read_verified
from rpn_jax.weights.trees import check_collections, host_copy, write_item

SAME_FUNCTION = (
    "model.precision",
    "model.backbone.frozen_stages",
    "model.backbone.train_norm",
    "model.roi.category_ids",
)
"""Keys that may differ between weights and the config in use. They change how a model is trained
and rounded and how its results are written, not the function that it computes."""

REMOVALS = 50
SECONDS_BETWEEN_REMOVALS = 0.2

_CONFIGS: dict[int, Config] = {}
"""Config of loaded weights, by the id of their first array while it exists.

It lets `check_same_config` find a wrong combination in Python. Plain dicts of arrays, which Flax
and JAX expect, have no place for it.
"""


def save_variables(folder: str | Path, config: Config, variables: Any) -> None:
    """Write a folder of weights: ``config.json`` and ``variables``.

    The folder gets its name when it is complete, so a failure leaves no folder.

    Args:
      folder: a folder that does not exist or is empty.
      config: the config of the weights.
      variables: nested dicts of arrays: ``params`` and, with batch statistics, ``batch_stats``.

    Raises:
      UserError: the folder is not empty or cannot be written, ``config`` is no `Config`, or
        ``variables`` have no ``params``.
    """
    check_part(config, Config)
    check_collections(variables, "variables")
    with new_folder(Path(folder)) as temporary:
        write_weights(temporary, config, variables)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder. It is renamed to ``folder`` if the block succeeds.

    Raises:
      UserError: the folder is not empty or cannot be written.
    """
    check_new_folder(folder)
    make_folder(folder.parent)
    temporary = folder.resolve().with_name(f".{folder.resolve().name}.{os.getpid()}.tmp")
    try:
        with writing(f"weights {folder}"):
            temporary.mkdir()
            yield temporary
            temporary.replace(folder)
    except BaseException:
        _remove(temporary)
        raise


def write_weights(folder: Path, config: Config, variables: Any) -> None:
    """Write ``config.json`` and ``variables`` to an empty folder."""
    save_config(config, folder / CONFIG_FILE)
    write_item(folder / VARIABLES, host_copy(variables))


def _remove(folder: Path) -> None:
    """Remove a folder to which threads of `write_item` may still write."""
    for _ in range(REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(SECONDS_BETWEEN_REMOVALS)
        if not folder.exists():
            return


def check_new_folder(folder: Path) -> None:
    """Raise a UserError if weights cannot be written to a folder because it is not empty."""
    with reading(f"weights {folder}"):
        taken = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    if taken:
        raise UserError(f"weights {folder}: exists already. Choose another folder, or remove it.")


def load_variables(folder: str | Path) -> dict[str, Any]:
    """Load weights.

    Args:
      folder: one of three kinds of folders.
        A folder that `save_variables` wrote.
        A work directory of training: its best checkpoint is loaded, or its last one if none was
        evaluated.
        The folder of one step in ``checkpoints`` of a work directory.

    Returns:
      ``params`` and, with batch statistics, ``batch_stats``: nested dicts of NumPy arrays with
      the dtypes that were saved. Training and conversion save float32.

    Raises:
      UserError: the folder does not exist, is of another kind, is damaged or cannot be read.
    """
    folder = Path(folder)
    with reading(f"weights {folder}"):
        variables_folder = _variables_folder(folder)
    variables = read_verified(variables_folder)
    config = stored_config(folder)
    if config is not None:
        _remember_config(variables, config)
    return variables


def _variables_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(
            f"weights {folder}: no such folder. Proposer.load, Detector.load and the commands also "
            "take names, URLs and .pth files."
        )
    step_folder = best_step_folder(folder) if (folder / CHECKPOINTS).is_dir() else folder
    if not (step_folder / VARIABLES).is_dir():
        raise UserError(
            f"weights {folder}: holds no weights. Give a folder that `convert` wrote, a work "
            "directory of `train`, or the folder of a step in its checkpoints."
        )
    return step_folder / VARIABLES


def check_same_model(
    config: Config, folder: str | Path, sections: tuple[str, ...] = ("model.", "pixels.")
) -> None:
    """Check that weights were trained with the same model as the config in use.

    Models whose weights have the same shapes can differ in the position of strides, in their pixels
    or in their anchors. Weights that do not hold a config are not checked.

    Args:
      config: the config in use.
      folder: the folder of the weights.
      sections: first parts of the keys that must be equal.

    Raises:
      UserError: one of these keys differs and is not in `SAME_FUNCTION`.
    """
    theirs = stored_config(folder)
    if theirs is not None:
        check_same_config(folder, theirs, config, sections)


def stored_config(folder: str | Path) -> Config | None:
    """Return the config of a folder of weights, a work directory or a step in it, if it has one."""
    path = config_file_of(Path(folder))
    return load_config(path) if path is not None else None


def check_same_config(
    weights: str | Path,
    theirs: Config,
    ours: Config,
    sections: tuple[str, ...] = ("model.", "pixels."),
) -> None:
    """Check that two configs describe the same model.

    Args:
      weights: name of the weights, for the error message.
      theirs: config of the weights.
      ours: config in use.
      sections: first parts of the keys that must be equal.

    Raises:
      UserError: one of these keys differs and is not in `SAME_FUNCTION`.
    """
    is_resnet = not (ours.model.backbone_class or theirs.model.backbone_class)
    unused = () if is_resnet else ("model.backbone.",)
    for key, value, used in config_changes(theirs, ours):
        if key.startswith(sections) and not key.startswith(unused) and key not in SAME_FUNCTION:
            raise UserError(
                f"weights {weights}: do not match the config: {key} is {value!r} in the "
                f"weights and {used!r} in the config"
            )


def config_of_variables(variables: Any) -> Config | None:
    """Return the config that lay beside weights when `load_variables` loaded them, if any."""
    return _CONFIGS.get(id(_first_leaf(variables)))


def _remember_config(variables: Any, config: Config) -> None:
    leaf = _first_leaf(variables)
    _CONFIGS[id(leaf)] = config
    weakref.finalize(leaf, _CONFIGS.pop, id(leaf), None)


def _first_leaf(variables: Any) -> Any:
    return next(iter(jax.tree.leaves(variables)), None)
