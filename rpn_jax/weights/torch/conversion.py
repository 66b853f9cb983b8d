"""Convert a PyTorch file to a folder of weights, and back.

The conversion is strict. Every key is used or listed with the reason, and every parameter must be
in the file. Shapes are compared before anything is written. The folder gets its name when it is
complete, so a failed conversion leaves no folder.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rpn_jax import __version__
from rpn_jax.config import Config, load_config, replace
from rpn_jax.config.files import config_from_values, config_values
from rpn_jax.errors import UserError, writing
from rpn_jax.files import written_whole
from rpn_jax.models import variable_shapes
from rpn_jax.models.backbone import check_resnet
from rpn_jax.structures import Variables
from rpn_jax.weights.folders import (
    check_new_folder,
    load_variables,
    new_folder,
    stored_config,
    write_weights,
)
from rpn_jax.weights.torch.download import compare_digits, local_file
from rpn_jax.weights.torch.match import (
    KeyMatch,
    assumed_statistics,
    choose_config,
    describe,
    expected_shapes,
    has_second_stage,
    match_config,
    match_keys,
    with_classes_of_file,
)
from rpn_jax.weights.torch.names import (
    Shapes,
    flat_by_torch_key,
    from_torch_layout,
    nest,
    to_torch_layout,
)
from rpn_jax.weights.torch.read import Checkpoint, read_checkpoint
from rpn_jax.weights.torch.report import ChosenBy, Report, write_report
from rpn_jax.weights.torch.style import check_style, detect_style, published_file
from rpn_jax.weights.trees import shape_differences

CONFIG_ENTRY = "rpn_jax_config"
"""Entry of ``meta`` with which `to_torch` keeps what PyTorch's files have no place for, such as
category ids and the scale of pictures. MMDetection ignores it."""


@dataclass(frozen=True)
class Converted:
    """The weights of a file as variables of this package."""

    config: Config
    variables: Variables
    """float32 variables of the config: all, or those of the first stage or of the backbone."""
    report: Report


def convert(source: str, out: Path, config_name: str | None) -> Report:
    """Convert a PyTorch file to a folder of weights that `rpn_jax.load_variables` reads.

    Args:
      source: a path, an https URL, or a name such as ``torchvision://resnet50``.
      out: a folder that does not exist yet.
      config_name: name or path of the config that the weights are for. None selects the config of
        this package that they fit.

    Returns:
      The report, which is also written to ``out/report.json``.

    Raises:
      UserError: the source cannot be downloaded or read, is not a weights file, contains code to
        execute, or does not match the config; or the folder exists.
    """
    check_new_folder(out)
    config = load_config(config_name) if config_name is not None else None
    converted = read_converted(source, config)
    write_converted(out, converted)
    return converted.report


def read_converted(source: str, config: Config | None) -> Converted:
    """Read a source for a config, or for the one in its metadata, or for the one that it fits.

    `convert` lists the errors.

    The second stage has the number of classes of the file, whatever the config has.
    """
    path = local_file(source)
    checkpoint = read_checkpoint(path)
    written_with, metadata = split_metadata(checkpoint.metadata, path)
    match = match_keys(checkpoint.arrays, path)
    found = _shapes(match, checkpoint)
    detected = detect_style(source, path, match.zoo, found, metadata)
    chosen_by: ChosenBy
    if config is not None:
        chosen, chosen_by = config, "--config"
    elif written_with is not None:
        chosen, chosen_by = written_with, "metadata"
    else:
        chosen, chosen_by = choose_config(match, found, detected, path)
    check_resnet(chosen, f"weights {path}")
    check_style(chosen, detected, path)
    chosen = with_classes_of_file(chosen, found, metadata)
    published = published_file(source, path.name)
    if published is not None and published.pixels is not None:
        chosen = replace(chosen, pixels=published.pixels)
    match = match_config(match, chosen)
    expected = expected_shapes(chosen, match)
    assumed = assumed_statistics(match, expected)
    _check_shapes(_shapes(match, checkpoint), assumed, expected, chosen, path)
    arrays = _arrays(match, checkpoint, assumed, expected, path)
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
        class_names=_class_names(chosen, match),
        architecture=describe(_shapes(match, checkpoint)),
        numbers=sum(checkpoint.arrays[key].size for key in match.sources.values()),
        dtypes=checkpoint.dtypes,
        used=match.sources,
        assumed=assumed,
        initialised=initialised,
        left_out=match.left_out | checkpoint.left_out,
        metadata=metadata,
    )
    return Converted(chosen, variables, report)


def _class_names(config: Config, match: KeyMatch) -> tuple[str, ...]:
    roi = config.model.roi
    return roi.class_names if roi is not None and has_second_stage(match.sources) else ()


def to_torch(weights: Path, file: Path) -> None:
    """Write a folder of weights as a ``.pth`` file under MMDetection's names.

    Args:
      weights: a folder that `rpn_jax.load_variables` reads.
      file: a file that does not exist yet. It gets the entries ``state_dict`` (float32, with
        ``num_batches_tracked`` 0 for every batch norm) and ``meta`` (class names and config).

    Raises:
      UserError: the weights cannot be read, or their backbone is no ResNet; the file exists or
        cannot be written; or PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file}: PyTorch is not installed. Run: pip install 'rpn-jax[torch]'"
        ) from None
    with writing(file):
        taken = file.exists()
    if taken:
        raise UserError(f"{file}: exists already. Choose another path, or remove the file.")
    config = stored_config(weights)
    if config is not None:
        check_resnet(config, f"weights {weights}")
    content = {
        "meta": {"written_by": f"rpn_jax {__version__}", **_metadata(config)},
        "state_dict": OrderedDict(
            (key, torch.from_numpy(array))
            for key, array in state_dict(load_variables(weights)).items()
        ),
    }
    with written_whole(file) as part, part.open("wb") as output:
        try:
            torch.save(content, output)
        except RuntimeError as error:
            # PyTorch raises its own error while it handles that of the file, such as a full disk.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _metadata(config: Config | None) -> dict[str, Any]:
    """Return the config, and the class names as MMDetection 2.x and 3.x read them."""
    if config is None:
        return {}
    metadata: dict[str, Any] = {CONFIG_ENTRY: json.dumps(config_values(config))}
    if config.model.roi is not None:
        names = config.model.roi.class_names
        metadata |= {"CLASSES": names, "dataset_meta": {"classes": names}}
    return metadata


def split_metadata(metadata: dict[str, Any], path: Path) -> tuple[Config | None, dict[str, Any]]:
    """Split the metadata of a file into the config that `to_torch` wrote, if any, and the others.

    Raises:
      UserError: the config cannot be read.
    """
    meta = metadata.get("meta")
    if not isinstance(meta, dict) or CONFIG_ENTRY not in meta:
        return None, metadata
    others = {**metadata, "meta": {key: meta[key] for key in meta if key != CONFIG_ENTRY}}
    try:
        values = json.loads(meta[CONFIG_ENTRY])
    except (TypeError, ValueError) as error:
        raise UserError(f"weights {path}: its {CONFIG_ENTRY} is not JSON ({error})") from None
    return config_from_values(values, path), others


def state_dict(variables: Variables) -> dict[str, np.ndarray]:
    """Return variables with PyTorch's keys and layout, and with a counter for each batch norm."""
    arrays = {}
    for key, (_, leaf) in flat_by_torch_key(variables).items():
        arrays[key] = np.ascontiguousarray(to_torch_layout(key, np.asarray(leaf)))
        if key.endswith(".running_var"):
            module = key.removesuffix(".running_var")
            arrays[f"{module}.num_batches_tracked"] = np.zeros((), np.int64)
    return arrays


def _shapes(match: KeyMatch, checkpoint: Checkpoint) -> Shapes:
    return {name: checkpoint.arrays[key].shape for name, key in match.sources.items()}


def _check_shapes(
    found: Shapes, assumed: dict[str, float], expected: Shapes, config: Config, path: Path
) -> None:
    needed = {name: shape for name, shape in expected.items() if name not in assumed}
    differences = shape_differences(needed, found)
    if differences:
        raise UserError(
            f"weights {path}: holds {describe(found)}, but config {config.name} needs "
            f"{describe(expected)}: {differences}"
        )


def _arrays(
    match: KeyMatch,
    checkpoint: Checkpoint,
    assumed: dict[str, float],
    expected: Shapes,
    path: Path,
) -> dict[str, np.ndarray]:
    """Return every expected array by MMDetection's key, float32 in PyTorch's layout."""
    arrays = {name: np.full(expected[name], value, np.float32) for name, value in assumed.items()}
    for name, key in match.sources.items():
        array = checkpoint.arrays[key]
        if array.dtype != np.float32:
            raise UserError(f"weights {path}: '{key}' has dtype {array.dtype}, not a floating one")
        if not np.isfinite(array).all():
            raise UserError(f"weights {path}: '{key}' holds NaN or infinite values")
        arrays[name] = array
    return arrays


def _fill(arrays: dict[str, np.ndarray], config: Config) -> tuple[Variables, tuple[str, ...]]:
    """Return (variables, names of those that ``arrays`` does not hold)."""
    expected = flat_by_torch_key(variable_shapes(config))
    leaves = {
        path: np.ascontiguousarray(from_torch_layout(arrays[name], leaf.shape))
        for name, (path, leaf) in expected.items()
        if name in arrays
    }
    return nest(leaves), tuple(name for name in expected if name not in arrays)


def write_converted(out: Path, converted: Converted) -> None:
    """Write weights and report to the new folder ``out``.

    Raises:
      UserError: the folder is not empty or cannot be written.
    """
    with new_folder(out) as folder:
        write_weights(folder, converted.config, converted.variables)
        write_report(converted.report, folder)
