"""A PyTorch file to a folder of weights, and back.

Strict: every key is used or listed with the reason, every parameter is filled, shapes are compared
before anything is written, and the folder appears whole or not at all.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rpn_jax import __version__
from rpn_jax.config import Config, load_config
from rpn_jax.errors import UserError, writing
from rpn_jax.files import written_whole
from rpn_jax.models import variable_shapes
from rpn_jax.weights.folders import check_new_folder, load_variables, save_variables
from rpn_jax.weights.torch.download import compare_digits, local_file
from rpn_jax.weights.torch.match import (
    KeyMatch,
    assumed_statistics,
    choose_config,
    describe,
    differences,
    leave_out_unused_stages,
    match_keys,
    wanted_shapes,
)
from rpn_jax.weights.torch.names import (
    Shapes,
    flat_by_torch_key,
    from_torch_layout,
    nest,
    to_torch_layout,
)
from rpn_jax.weights.torch.read import Checkpoint, read_checkpoint
from rpn_jax.weights.torch.report import Report, write_report
from rpn_jax.weights.torch.style import check_style, told_style

if TYPE_CHECKING:
    from rpn_jax.structures import Variables

DIFFERENCES_NAMED = 3


@dataclass(frozen=True)
class Converted:
    """A file's weights as this package's variables."""

    config: Config
    variables: Variables
    """All of the config's, or, from a backbone's file, those of the backbone; NumPy float32."""
    report: Report


def convert(source: str, out: Path, config_name: str | None) -> Report:
    """Write the weights of a PyTorch file as a folder that `rpn_jax.load_variables` reads.

    Args:
      source: a path, an https URL, or a name such as ``torchvision://resnet50``.
      out: a folder that does not exist yet.
      config_name: name or path of the config that the weights are for; None takes the one of this
        package that they fit.

    Returns:
      The report, which is also in ``out/report.json``.

    Raises:
      UserError: a source that cannot be had, is no file of weights, asks to run code, or does not
        fit the config; a folder that exists.
    """
    check_new_folder(out)
    config = load_config(config_name) if config_name is not None else None
    converted = read_converted(source, config)
    _write_folder(out, converted)
    return converted.report


def read_converted(source: str, config: Config | None) -> Converted:
    """Read a source for a config (None: the one that it fits); see `convert`."""
    path = local_file(source)
    checkpoint = read_checkpoint(path)
    match = match_keys(checkpoint.arrays, path)
    found = _shapes(match, checkpoint)
    told = told_style(source, path, match.zoo, found, checkpoint.metadata)
    chosen, chosen_by = (
        choose_config(match, found, told, path) if config is None else (config, "--config")
    )
    check_style(chosen, told, path)
    match = leave_out_unused_stages(match, chosen)
    wanted = wanted_shapes(chosen, match.zoo)
    assumed = assumed_statistics(match, wanted)
    _check_shapes(_shapes(match, checkpoint), assumed, wanted, chosen, path)
    arrays = _arrays(match, checkpoint, assumed, wanted, path)
    variables, initialised = _fill(arrays, chosen)
    report = Report(
        source=source,
        sha256=checkpoint.sha256,
        size_bytes=checkpoint.size_bytes,
        digits_in_name=compare_digits(path.name, checkpoint.sha256),
        zoo=match.zoo.name,
        kind=match.zoo.kind,
        config=chosen.name,
        config_chosen_by=chosen_by,
        architecture=describe(_shapes(match, checkpoint)),
        numbers=sum(checkpoint.arrays[key].size for key in match.sources.values()),
        dtypes=checkpoint.dtypes,
        used=match.sources,
        assumed=assumed,
        initialised=initialised,
        left_out=match.left_out | checkpoint.left_out,
        metadata=checkpoint.metadata,
    )
    return Converted(chosen, variables, report)


def to_torch(weights: Path, file: Path) -> None:
    """Write a folder of weights as a ``.pth`` file under MMDetection's names.

    Args:
      weights: what `rpn_jax.load_variables` reads.
      file: a file that does not exist yet; holds ``state_dict``, in float32, with
        ``num_batches_tracked`` 0 for every batch norm, and ``meta``.

    Raises:
      UserError: no such weights, a file that exists or cannot be written, or no PyTorch.
    """
    try:
        import torch
    except ImportError:
        raise UserError(f"{file}: writing it needs PyTorch: pip install 'rpn-jax[torch]'") from None
    with writing(file):
        taken = file.exists()
    if taken:
        raise UserError(f"{file}: exists already; name a new file or remove this one")
    content = {
        "meta": {"written_by": f"rpn_jax {__version__}"},
        "state_dict": OrderedDict(
            (key, torch.from_numpy(array))
            for key, array in state_dict(load_variables(weights)).items()
        ),
    }
    with written_whole(file) as part:
        try:
            torch.save(content, part)
        except RuntimeError as error:  # PyTorch's own, for a folder that is missing
            raise UserError(f"{file}: cannot be written ({error})") from None


def state_dict(variables: Variables) -> dict[str, np.ndarray]:
    """Variables under PyTorch's names and in its layout, with the counters of batch norms."""
    arrays = {}
    for key, (_, leaf) in flat_by_torch_key(variables).items():
        arrays[key] = np.ascontiguousarray(to_torch_layout(np.asarray(leaf)))
        if key.endswith(".running_var"):
            module = key.removesuffix(".running_var")
            arrays[f"{module}.num_batches_tracked"] = np.zeros((), np.int64)
    return arrays


def _shapes(match: KeyMatch, checkpoint: Checkpoint) -> Shapes:
    return {name: checkpoint.arrays[key].shape for name, key in match.sources.items()}


def _check_shapes(
    found: Shapes, assumed: dict[str, float], wanted: Shapes, config: Config, path: Path
) -> None:
    complaints = differences(found, {name: wanted[name] for name in wanted if name not in assumed})
    if not complaints:
        return
    more = len(complaints) - DIFFERENCES_NAMED
    raise UserError(
        f"weights {path}: holds {describe(found)}; config {config.name} wants {describe(wanted)}: "
        f"{'; '.join(complaints[:DIFFERENCES_NAMED])}{f'; and {more} more' if more > 0 else ''}"
    )


def _arrays(
    match: KeyMatch,
    checkpoint: Checkpoint,
    assumed: dict[str, float],
    wanted: Shapes,
    path: Path,
) -> dict[str, np.ndarray]:
    """Every wanted array by its MMDetection name, float32 in PyTorch's layout."""
    arrays = {name: np.full(wanted[name], value, np.float32) for name, value in assumed.items()}
    for name, key in match.sources.items():
        array = checkpoint.arrays[key]
        if array.dtype != np.float32:
            raise UserError(f"weights {path}: '{key}' holds {array.dtype}, not floating numbers")
        if not np.isfinite(array).all():
            raise UserError(f"weights {path}: '{key}' holds numbers that are not finite")
        arrays[name] = array
    return arrays


def _fill(arrays: dict[str, np.ndarray], config: Config) -> tuple[Variables, tuple[str, ...]]:
    """(variables, names of those that ``arrays`` does not hold)."""
    paths = {name: path for name, (path, _) in flat_by_torch_key(variable_shapes(config)).items()}
    leaves = {
        path: np.ascontiguousarray(from_torch_layout(arrays[name]))
        for name, path in paths.items()
        if name in arrays
    }
    return nest(leaves), tuple(name for name in paths if name not in arrays)


def _write_folder(out: Path, converted: Converted) -> None:
    """Write weights and report beside ``out``, then give them its name in one step."""
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            folder = Path(temporary) / out.name
            save_variables(folder, converted.config, converted.variables)
            write_report(converted.report, folder)
            folder.replace(out)
