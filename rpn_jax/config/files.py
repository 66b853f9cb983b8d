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
from rpn_jax.errors import UserError, nearest
from rpn_jax.files import read_json, write_json

T = TypeVar("T")


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
    try:
        is_file = path.is_file()
    except OSError as error:
        raise UserError(f"config {path}: cannot be read ({error.strerror})") from None
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
    write_json(path, dataclasses.asdict(config))


def config_from_json(path: Path) -> Config:
    """Read what `config_to_json` wrote. Raises UserError for a broken file or an unknown key."""
    return _from_dict(Config, read_json(path), path)


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
