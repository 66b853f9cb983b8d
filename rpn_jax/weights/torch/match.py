"""From a file's keys to this package's, and to the config that they fit."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rpn_jax.config import Config, ModelConfig, config_names, load_config
from rpn_jax.errors import UserError
from rpn_jax.models import variable_shapes
from rpn_jax.models.resnet import BLOCKS
from rpn_jax.weights.torch.names import STATISTICS, Shapes, flat_by_torch_key, torch_shape
from rpn_jax.weights.torch.report import ChosenBy
from rpn_jax.weights.torch.style import ToldStyle
from rpn_jax.weights.torch.tables import ZOOS, Zoo


@dataclass(frozen=True)
class KeyMatch:
    """Every key of a file, either used or left out."""

    zoo: Zoo
    sources: dict[str, str]
    """Key as MMDetection names it -> key in the file."""
    left_out: dict[str, str]
    """Key in the file -> why it is not used."""


def match_keys(keys: Iterable[str], path: Path) -> KeyMatch:
    """Recognise the zoo of a file and bring its keys to MMDetection's names.

    Raises:
      UserError: keys of no known zoo, or two keys of one meaning.
    """
    keys = list(keys)
    zoo = _find_zoo(keys, path)
    sources: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for key in keys:
        reason = _reason_to_leave_out(key, zoo)
        if reason is not None:
            left_out[key] = reason
            continue
        name = _rename(key, zoo)
        if name in sources:
            raise UserError(f"weights {path}: '{sources[name]}' and '{key}' both mean '{name}'")
        sources[name] = key
    return KeyMatch(zoo, sources, left_out)


def leave_out_unused_stages(match: KeyMatch, config: Config) -> KeyMatch:
    """A backbone's stages beyond those of the config are left out, not unexpected."""
    stages = config.model.backbone.num_stages
    pattern = re.compile(rf"^backbone\.layer[{stages + 1}-9]\.")
    if match.zoo.kind == "detector":
        return match
    unused = {name for name in match.sources if pattern.match(name)}
    reason = f"the config's backbone ends after stage {stages}"
    return KeyMatch(
        zoo=match.zoo,
        sources={name: key for name, key in match.sources.items() if name not in unused},
        left_out=match.left_out | {match.sources[name]: reason for name in sorted(unused)},
    )


def wanted_shapes(config: Config, zoo: Zoo) -> Shapes:
    """What a file of this zoo must hold for a config: all of it, or its backbone."""
    return {
        name: shape
        for name, shape in _shapes_of_model(config.model).items()
        if zoo.kind == "detector" or name.startswith("backbone.")
    }


@functools.cache  # tracing a model takes a while, and several configs share one
def _shapes_of_model(model: ModelConfig) -> Shapes:
    variables = variable_shapes(Config(model=model))
    return {
        name: torch_shape(leaf.shape) for name, (_, leaf) in flat_by_torch_key(variables).items()
    }


def assumed_statistics(match: KeyMatch, wanted: Shapes) -> dict[str, float]:
    """Statistics of norms that only scale and shift: key -> 0 for means, 1 for variances.

    Only where a backbone's file holds no statistics of any norm; one that lacks some is incomplete.
    """
    statistics = {name for name in wanted if name.rpartition(".")[2] in STATISTICS}
    if match.zoo.kind == "detector" or statistics & set(match.sources):
        return {}
    return {name: STATISTICS[name.rpartition(".")[2]] for name in wanted if name in statistics}


def differences(found: Shapes, wanted: Shapes) -> list[str]:
    """What of ``found`` differs from ``wanted``, in the order of shapes, missing, unexpected."""
    reshaped = [
        f"'{name}' has shape {shape}, not {wanted[name]}"
        for name, shape in found.items()
        if name in wanted and wanted[name] != shape
    ]
    missing = [
        f"'{name}' {shape} is missing" for name, shape in wanted.items() if name not in found
    ]
    unexpected = [
        f"'{name}' {shape} is unexpected" for name, shape in found.items() if name not in wanted
    ]
    return reshaped + missing + unexpected


def choose_config(
    match: KeyMatch, found: Shapes, told: ToldStyle | None, path: Path
) -> tuple[Config, ChosenBy]:
    """The config of this package that a file fits, and what decided.

    Shapes do not tell a 'caffe' backbone from a 'pytorch' one, so the file's name as published, or
    what else tells its style, decides between them.

    Raises:
      UserError: no config fits, or several that compute different things.
    """
    fitting = [config for config in map(load_config, config_names()) if fits(config, match, found)]
    if not fitting:
        raise UserError(
            f"weights {path}: holds {describe(found)}, which no config of this package fits; "
            "name one of your own with --config"
        )
    narrowed: list[tuple[ChosenBy, list[Config]]] = [
        ("file name", [config for config in fitting if _is_named_after(path, config)]),
        ("shapes", fitting),
    ]
    if told is not None:
        of_style = [config for config in fitting if config.model.backbone.style == told.style]
        narrowed.append((told.by, of_style))
    for chosen_by, configs in narrowed:
        if len({(config.model, config.pixels) for config in configs}) == 1:
            return configs[0], chosen_by
    names = ", ".join(config.name for config in fitting)
    raise UserError(
        f"weights {path}: fits several configs; name the right one with --config ({names})"
    )


def fits(config: Config, match: KeyMatch, found: Shapes) -> bool:
    """Whether a file fills a config's parameters, and nothing is left over."""
    kept = leave_out_unused_stages(match, config).sources
    wanted = wanted_shapes(config, match.zoo)
    assumed = assumed_statistics(match, wanted)
    needed = {name: shape for name, shape in wanted.items() if name not in assumed}
    return {name: found[name] for name in kept} == needed


def describe(shapes: Shapes) -> str:
    """An architecture in words, from keys and shapes alone."""
    parts = [_describe_backbone(shapes)]
    if any(name.startswith("neck.") for name in shapes):
        parts.append("FPN")
    if "rpn_head.rpn_cls.weight" in shapes:
        parts.append(f"{shapes['rpn_head.rpn_cls.weight'][0]} anchors a cell")
    return ", ".join(parts)


def _describe_backbone(shapes: Shapes) -> str:
    found: dict[int, set[int]] = {}
    for name in shapes:
        if block := re.match(r"backbone\.layer(\d)\.(\d+)\.", name):
            found.setdefault(int(block[1]), set()).add(int(block[2]))
    blocks = tuple(len(found[stage]) for stage in sorted(found))
    bottleneck = "backbone.layer1.0.conv3.weight" in shapes
    depths = [
        depth
        for depth, counts in BLOCKS.items()
        if counts[: len(blocks)] == blocks and (depth >= 50) == bottleneck
    ]
    stages = f"{len(blocks)} stages"
    if not blocks or not depths:
        return f"an unknown backbone of {stages} with {blocks} blocks"
    features, per_group = shapes.get("backbone.layer1.0.conv2.weight", (0, 0))[:2]
    if bottleneck and per_group and features != per_group:
        groups = features // per_group
        return f"ResNeXt-{depths[0]} {groups}x{per_group}d of {stages}"
    norm = "group norm" if "backbone.gn1.weight" in shapes else "batch norm"
    return f"ResNet-{depths[0]} of {stages} with {norm}"


def _find_zoo(keys: list[str], path: Path) -> Zoo:
    for zoo in ZOOS:
        if all(any(re.search(mark, key) for key in keys) for mark in zoo.marks):
            return zoo
    first = ", ".join(f"'{key}'" for key in keys[:3])
    raise UserError(
        f"weights {path}: keys of no known zoo, the first are {first} "
        f"(known: {'; '.join(zoo.name for zoo in ZOOS)})"
    )


def _reason_to_leave_out(key: str, zoo: Zoo) -> str | None:
    return next((reason for pattern, reason in zoo.left_out if re.search(pattern, key)), None)


def _rename(key: str, zoo: Zoo) -> str:
    for pattern, replacement in zoo.renames:
        key = re.sub(pattern, replacement, key)
    return key


def _is_named_after(path: Path, config: Config) -> bool:
    """Published files are named like their config, with the date and digits after it."""
    name = re.escape(config.name.replace("-", "_"))
    date_and_digits = r"(_20\d{6}\w*|_[0-9a-f]{8})?"
    return bool(re.fullmatch(rf"{name}{date_and_digits}\.\w+", path.name.replace("-", "_")))
