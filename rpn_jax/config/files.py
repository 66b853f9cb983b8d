"""Configs by name, from Python files and as JSON.

A config file is a Python file that defines ``CONFIG``, a `Config`. The eleven of the reference and
two small ones lie in ``configs/``; any other file with a ``CONFIG`` works the same.
"""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from rpn_jax.config.sections import Config
from rpn_jax.errors import UserError, nearest, reading
from rpn_jax.files import read_json, write_json

T = TypeVar("T")

FORMAT = 2
"""Number that `config_to_json` writes as ``format``. Version 0.1 wrote none: its files are 1."""


def load_config(name_or_path: str | Path) -> Config:
    """Load a `Config` by name, or by the path of a ``.py`` file with CONFIG or a saved ``.json``.

    Raises:
      UserError: no such config, a file without CONFIG, or an impossible value in it.
    """
    path = Path(name_or_path)
    if path.suffix == ".json":
        return config_from_json(path)
    if path.suffix != ".py":
        path = _named_config(str(name_or_path))
    with reading(f"config {path}"):
        is_file = path.is_file()
    if not is_file:
        raise UserError(f"config {path}: no such file")
    try:
        config = runpy.run_path(str(path)).get("CONFIG")
    except UserError:
        raise
    except Exception as error:  # a config file is a person's code and can fail in any way
        raise UserError(f"config {path}: does not run ({type(error).__name__}: {error})") from error
    if not isinstance(config, Config):
        raise UserError(f"config {path}: defines no CONFIG of type rpn_jax.config.Config")
    return config


def config_names() -> list[str]:
    """Names of the configs that come with the package, sorted."""
    return sorted(_config_paths())


def config_to_json(config: Config, path: Path) -> None:
    """Write a resolved config, to be read again by `load_config`."""
    write_json(path, {"format": FORMAT, **dataclasses.asdict(config)})


def config_from_json(path: Path) -> Config:
    """Read what `config_to_json` wrote, in this version or an older one.

    Raises:
      UserError: the file is broken, has an unknown key, or was written by a newer version.
    """
    values = read_json(path)
    if isinstance(values, dict):
        values = _in_current_format(values, path)
    return _from_dict(Config, values, path)


def _config_folder() -> Path:
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _config_paths() -> dict[str, Path]:
    """Paths of the configs that come with the package, by name: the stem of the file."""
    return {path.stem: path for path in _config_folder().rglob("*.py")}


def _named_config(name: str) -> Path:
    paths = _config_paths()
    if name not in paths:
        names = sorted(paths)
        raise UserError(
            f"config '{name}': no such name or .py file{nearest(name, names)} "
            f"(known: {', '.join(names)})"
        )
    return paths[name]


def _in_current_format(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the values of a config file of any format under today's keys, without ``format``."""
    values = dict(values)
    number = values.pop("format", 1)
    if number not in range(1, FORMAT + 1):
        raise UserError(
            f"config {path}: format = {number!r}: must be 1 to {FORMAT}. A newer version of "
            "rpn_jax wrote this file; install that version."
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


def _from_dict(cls: type[T], values: Any, path: Path, prefix: str = "") -> T:
    if not isinstance(values, dict):
        section = f"'{prefix.removesuffix('.')}'" if prefix else "the file"
        raise UserError(f"config {path}: {section} is no object")
    hints = get_type_hints(cls)
    unknown = set(values) - set(hints)
    if unknown:
        key = min(unknown)
        raise UserError(f"config {path}: unknown key '{prefix}{key}'{nearest(key, list(hints))}")
    arguments = {
        key: _from_dict(hints[key], value, path, f"{prefix}{key}.")
        if dataclasses.is_dataclass(hints[key])
        else _tuples(value)
        for key, value in values.items()
    }
    return cls(**arguments)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
