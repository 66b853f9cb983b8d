"""Match the keys of a file with those of this package, and find the config that they fit."""

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
from rpn_jax.weights.torch.style import DetectedStyle
from rpn_jax.weights.torch.tables import ZOOS, Zoo


@dataclass(frozen=True)
class KeyMatch:
    """The keys of a file. Each is either used or left out."""

    zoo: Zoo
    sources: dict[str, str]
    """Key in the file, by MMDetection's key."""
    left_out: dict[str, str]
    """Reason why a key in the file is not used, by key."""


def match_keys(keys: Iterable[str], path: Path) -> KeyMatch:
    """Detect the zoo of a file and rename its keys to MMDetection's.

    Raises:
      UserError: the keys are of no known zoo, or two keys get the same name.
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
    """Leave out the stages of a backbone file that the config's backbone does not have."""
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


def expected_shapes(config: Config, zoo: Zoo) -> Shapes:
    """Return the shapes that a file of this zoo needs for a config: of all, or of the backbone."""
    return {
        name: shape
        for name, shape in _shapes_of_model(config.model).items()
        if zoo.kind == "detector" or name.startswith("backbone.")
    }


@functools.cache  # tracing a model is slow, and several configs share a model
def _shapes_of_model(model: ModelConfig) -> Shapes:
    variables = variable_shapes(Config(model=model))
    return {
        name: torch_shape(name, leaf.shape)
        for name, (_, leaf) in flat_by_torch_key(variables).items()
    }


def assumed_statistics(match: KeyMatch, expected: Shapes) -> dict[str, float]:
    """Return the statistics of norms that only scale and shift, by key: mean 0 and variance 1.

    A backbone has such norms if its file holds no statistics at all. A file that holds only some
    of them is incomplete, and the result is empty.
    """
    statistics = {name for name in expected if name.rpartition(".")[2] in STATISTICS}
    if match.zoo.kind == "detector" or statistics & set(match.sources):
        return {}
    return {name: STATISTICS[name.rpartition(".")[2]] for name in expected if name in statistics}


def choose_config(
    match: KeyMatch, found: Shapes, detected: DetectedStyle | None, path: Path
) -> tuple[Config, ChosenBy]:
    """Return the config of this package that a file fits, and how it was chosen.

    Backbones of the styles 'caffe' and 'pytorch' have the same shapes. The published file name or
    the detected style selects one of them.

    Raises:
      UserError: no config fits, or several configs fit that are different models.
    """
    fitting = [config for config in map(load_config, config_names()) if fits(config, match, found)]
    if not fitting:
        raise UserError(
            f"weights {path}: holds {describe(found)}, and no config of this package fits. "
            "Give your own config with --config."
        )
    narrowed: list[tuple[ChosenBy, list[Config]]] = [
        ("file name", [config for config in fitting if _is_named_after(path, config)]),
        ("shapes", fitting),
    ]
    if detected is not None:
        of_style = [config for config in fitting if config.model.backbone.style == detected.style]
        narrowed.append((detected.by, of_style))
    for chosen_by, configs in narrowed:
        if len({(config.model, config.pixels) for config in configs}) == 1:
            return configs[0], chosen_by
    names = ", ".join(config.name for config in fitting)
    raise UserError(f"weights {path}: fits several configs. Choose one with --config ({names}).")


def fits(config: Config, match: KeyMatch, found: Shapes) -> bool:
    """Return whether a file holds exactly the parameters of a config."""
    kept = leave_out_unused_stages(match, config).sources
    expected = expected_shapes(config, match.zoo)
    assumed = assumed_statistics(match, expected)
    needed = {name: shape for name, shape in expected.items() if name not in assumed}
    return {name: found[name] for name in kept} == needed


def describe(shapes: Shapes) -> str:
    """Describe the architecture that keys and shapes belong to, in words."""
    parts = [_describe_backbone(shapes)]
    if any(name.startswith("neck.") for name in shapes):
        parts.append("FPN")
    if "rpn_head.rpn_cls.weight" in shapes:
        parts.append(f"{shapes['rpn_head.rpn_cls.weight'][0]} anchors per cell")
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
        if all(any(re.search(mark, key) for key in keys) for mark in zoo.key_patterns):
            return zoo
    first = ", ".join(f"'{key}'" for key in keys[:3])
    raise UserError(
        f"weights {path}: the keys are of no known zoo. The first are {first} "
        f"(known: {'; '.join(zoo.name for zoo in ZOOS)})"
    )


def _reason_to_leave_out(key: str, zoo: Zoo) -> str | None:
    return next((reason for pattern, reason in zoo.left_out if re.search(pattern, key)), None)


def _rename(key: str, zoo: Zoo) -> str:
    for pattern, replacement in zoo.renames:
        key = re.sub(pattern, replacement, key)
    return key


def _is_named_after(path: Path, config: Config) -> bool:
    """Return whether a file is named like a config, with a date and digits if it is published."""
    name = re.escape(config.name.replace("-", "_"))
    date_and_digits = r"(_20\d{6}\w*|_[0-9a-f]{8})?"
    return bool(re.fullmatch(rf"{name}{date_and_digits}\.\w+", path.name.replace("-", "_")))
