"""Load a whole model: its config and its weights, from a folder, a file, a URL or a name.

Everything that `rpn-jax convert` reads is converted once and kept in the cache folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from rpn_jax import __version__
from rpn_jax.config import Config, check_part
from rpn_jax.console import make_console, say
from rpn_jax.errors import UserError, reading
from rpn_jax.files import cache_folder, make_folder
from rpn_jax.models import variable_shapes
from rpn_jax.structures import Variables
from rpn_jax.weights.folders import (
    check_same_config,
    check_same_model,
    config_of_variables,
    load_variables,
    stored_config,
)
from rpn_jax.weights.torch.conversion import read_converted, write_converted
from rpn_jax.weights.torch.download import local_file, sha256_of
from rpn_jax.weights.trees import check_variables

DIGITS = 12
"""Number of digits of a SHA-256 in the name of a folder in the cache."""


def load_model(source: str | Path) -> tuple[Config, Variables]:
    """Load a config and the weights that belong to it.

    Args:
      source: one of these:
        a folder that `convert` or `save_variables` wrote;
        a work directory of training, whose best checkpoint is loaded;
        a source that `convert` reads: a ``.pth`` or ``.pkl`` file, an https URL, or a name such as
        ``mmdetection://rpn_r50_fpn_1x_coco``. It is converted into the cache folder.

    Raises:
      UserError: the source cannot be read or downloaded, holds no config, or does not hold all
        weights of a model.
    """
    folder = weights_folder(str(source), config=None)
    return config_of_weights(folder), load_variables(folder)


def weights_folder(source: str, config: Config | None) -> Path:
    """Return the folder of weights for a source. Convert it first if it is not a folder.

    Args:
      source: as in `load_model`.
      config: config that the weights are for. None detects it.

    Raises:
      UserError: the source cannot be read or downloaded, does not match the config, or holds only
        the weights of a backbone.
    """
    with reading(f"weights {source}"):
        if Path(source).is_dir():
            return Path(source)
    path = local_file(source)
    folder = _cached_folder(path, config)
    if not folder.is_dir():
        make_folder(folder.parent)
        # Several processes can need the same file. One of them converts it.
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _convert(source, config, folder)
    return folder


def _convert(source: str, config: Config | None, folder: Path) -> None:
    say(make_console(), f"converting {source} into {folder}")
    converted = read_converted(source, config)
    if converted.report.kind == "backbone":
        raise UserError(
            f"weights {source}: holds only a backbone. Train a detector from it with "
            f"--train.init-weights {source}, or use the weights of a whole detector."
        )
    write_converted(folder, converted)


def config_of_weights(folder: Path) -> Config:
    """Return the config of a folder of weights. Raise a UserError if it holds none."""
    config = stored_config(folder)
    if config is None:
        raise UserError(
            f"weights {folder}: has no config.json. Name the CONFIG of the weights (in Python: "
            "pass config and variables)."
        )
    return config


def load_matching_weights(config: Config, source: str | Path) -> tuple[Config, Variables]:
    """Load weights for a config.

    Args:
      config: config of the model.
      source: as in `load_model`.

    Returns:
      The config with the class names and category ids of the weights, and the weights.

    Raises:
      UserError: a reason of `weights_folder`, or the weights belong to another model.
    """
    folder = weights_folder(str(source), config)
    variables = load_variables(folder)
    config = with_classes_of(config, stored_config(folder))
    check_variables(variable_shapes(config), variables, folder)
    check_same_model(config, folder)
    return config, variables


def with_classes_of(config: Config, stored: Config | None) -> Config:
    """Return ``config`` with the classes of the weights.

    Class names that the user chose are kept, even if they are different from those of the weights.

    Args:
      config: config in use.
      stored: config of the weights, if there is one.
    """
    if stored is None or config.model.roi is None or stored.model.roi is None:
        return config
    ours, theirs = config.model.roi, stored.model.roi
    if not ours.has_default_names and ours.class_names != theirs.class_names:
        return config
    roi = replace(
        ours,
        num_classes=theirs.num_classes,
        class_names=theirs.class_names,
        category_ids=theirs.category_ids,
    )
    return replace(config, model=replace(config.model, roi=roi))


def check_model(config: Config, variables: Variables) -> None:
    """Check that weights belong to the model of a config.

    Weights of `load_variables` must also have been trained with the same anchors, pixels and
    strides. Those of other sources have no config to compare.

    Raises:
      UserError: the weights belong to another model, or ``config`` is only a part of a config.
    """
    check_part(config, Config)
    check_variables(variable_shapes(config), variables, "given")
    theirs = config_of_variables(variables)
    if theirs is not None:
        check_same_config("given", theirs, config)


def _cached_folder(path: Path, config: Config | None) -> Path:
    """Return the folder in the cache for a file converted by this version for a config."""
    name = f"{path.stem}-{sha256_of(path)[:DIGITS]}"
    if config is not None:
        parts = (dataclasses.asdict(config.model), dataclasses.asdict(config.pixels))
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        name = f"{name}-{config.name}-{digest[:DIGITS]}"
    return cache_folder() / "converted" / __version__ / name
