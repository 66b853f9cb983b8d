"""Load configs by name, from Python files and from JSON files, and save them as JSON.

A config file is a Python file that defines ``CONFIG``, a `Config`. The folder ``configs/`` holds
the RPNs and the Faster R-CNNs of the reference, and two small ones of each. A file at any other
path works as well.
"""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from traceback import extract_tb
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from rpn_jax.config.whole import Config
from rpn_jax.errors import UserError, nearest, reading
from rpn_jax.files import read_json, write_json

Section = TypeVar("Section")

CONFIG_FILE = "config.json"
"""Name of the config's file in a folder of weights or a work directory."""

STEPS_FOLDER = "checkpoints"
"""Name of the folder in a work directory that holds a folder of weights for each saved step."""

FORMAT = 2
"""The ``format`` that `save_config` writes. Version 0.1 wrote none: its files have format 1."""


def load_config(name_or_path: str | Path) -> Config:
    """Load a config.

    Args:
      name_or_path: name of a config of this package, path of a ``.py`` file that defines CONFIG,
        path of a ``.json`` file that `save_config` wrote, in this version or an older one, or path
        of a folder of weights or a work directory, which hold such a file.

    Raises:
      UserError: the config does not exist or cannot be read, defines no CONFIG, has an unknown key
        or a value that is not allowed, or was written by a newer version, or the argument is of
        another type.
    """
    try:
        path = Path(name_or_path)
    except TypeError:
        kind = type(name_or_path).__name__
        raise UserError(f"config: is of type {kind}: must be a name or a path") from None
    path = config_file_of(path) or path
    if path.suffix == ".json":
        return config_from_values(read_json(path), path)
    if path.suffix in (".yaml", ".yml"):
        raise UserError(
            f"config {path}: YAML configs of other tools cannot be read. Use a name from "
            "'rpn-jax --help', or a .py file that defines CONFIG, and change fields with flags."
        )
    if path.suffix != ".py":
        path = _named_config(str(name_or_path))
    with reading(f"config {path}"):
        is_file = path.is_file()
    if not is_file:
        raise UserError(f"config {path}: no such file")
    try:
        config = runpy.run_path(str(path)).get("CONFIG")
    except UserError as error:
        raise UserError(f"config {path}: {error}") from error
    except (Exception, SystemExit) as error:  # the code of a user can raise anything
        lines = [line for file, line, *_ in extract_tb(error.__traceback__) if file == str(path)]
        where = f" in line {lines[-1]}" if lines else ""
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"config {path}: fails{where} with {reason}") from error
    if not isinstance(config, Config):
        raise UserError(
            f"config {path}: defines no CONFIG of type rpn_jax.config.Config. Start from another "
            "one: CONFIG = load_config('rpn_r50_fpn_1x_coco')"
        )
    return config


def config_file_of(folder: Path) -> Path | None:
    """Return the config file of a folder of weights, a work directory or a step in it, if any.

    Raises:
      UserError: the folder cannot be read.
    """
    with reading(f"folder {folder}"):
        if not folder.is_dir():
            return None
        is_step = folder.parent.name == STEPS_FOLDER
        path = (folder.parent.parent if is_step else folder) / CONFIG_FILE
        return path if path.is_file() else None


def config_names() -> list[str]:
    """Return the names of the configs of this package in alphabetical order."""
    return sorted(_config_paths())


def save_config(config: Config, path: Path) -> None:
    """Write a config as JSON. `load_config` reads the file."""
    write_json(path, config_values(config))


def config_values(config: Config) -> dict[str, Any]:
    """Return a config as JSON values. `config_from_values` is the inverse."""
    return {"format": FORMAT, **dataclasses.asdict(config)}


def config_from_values(values: Any, path: Path) -> Config:
    """Return the config of JSON values, in this format or an older one.

    Args:
      values: what `config_values` returned.
      path: file that contains them, for error messages.

    Raises:
      UserError: a key is unknown, or a value is not allowed.
    """
    if isinstance(values, dict):
        values = _in_current_format(values, path)
    return _without_implied_buckets(_build(Config, values, path))


def _config_folder() -> Path:
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _config_paths() -> dict[str, Path]:
    """Return the paths of the configs of this package, by name: the stem of the file."""
    return {path.stem: path for path in _config_folder().rglob("*.py")}


def _named_config(name: str) -> Path:
    paths = _config_paths()
    if name not in paths:
        names = sorted(paths)
        raise UserError(
            f"config '{name}': is no known name and no .py or .json file{nearest(name, names)} "
            f"(known: {', '.join(names)})"
        )
    return paths[name]


def _in_current_format(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the values of a config file with the keys of the current format."""
    values = dict(values)
    number = values.pop("format", 1)
    if number not in range(1, FORMAT + 1):
        raise UserError(
            f"config {path}: format = {number!r}: must be 1 to {FORMAT}. A newer version of "
            "rpn_jax wrote this file. Install that version."
        )
    if number == 1:
        for old, new in (("loss", "rpn_loss"), ("proposals", "rpn_proposals")):
            if old in values:
                values[new] = values.pop(old)
        if isinstance(values.get("model"), dict):
            model = dict(values["model"])
            rpn = {
                new: model.pop(old)
                for old, new in (("head_channels", "channels"), ("anchors", "anchors"))
                if old in model
            }
            values["model"] = {**model, "rpn": rpn} if rpn else model
    return values


def _without_implied_buckets(config: Config) -> Config:
    """Drop buckets that follow from the scale. Version 0.1 wrote them into every file."""
    implied = dataclasses.replace(config.data, buckets=())
    if config.data.buckets != implied.canvases:
        return config
    return dataclasses.replace(config, data=implied)


def _build(section: type[Section], values: Any, path: Path, prefix: str = "") -> Section:
    """Return a section with the given values; the keys in error messages begin with ``prefix``."""
    if not isinstance(values, dict):
        name = f"'{prefix.removesuffix('.')}'" if prefix else "the file"
        raise UserError(f"config {path}: {name} is not a JSON object")
    hints = get_type_hints(section)
    unknown = set(values) - set(hints)
    if unknown:
        key = min(unknown)
        raise UserError(f"config {path}: unknown key '{prefix}{key}'{nearest(key, list(hints))}")
    arguments = {
        key: _build_field(hints[key], value, path, f"{prefix}{key}")
        for key, value in values.items()
    }
    try:
        return section(**arguments)
    except UserError as error:
        raise UserError(f"config {path}: {error}") from error


def _build_field(hint: Any, value: Any, path: Path, key: str) -> Any:
    kinds = get_args(hint) or (hint,)
    sections = [kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    is_absent = value is None and NoneType in get_args(hint)
    if not sections or is_absent:
        return _tuples(value)
    return _build(sections[0], value, path, f"{key}.")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
