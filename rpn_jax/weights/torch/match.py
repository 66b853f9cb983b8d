"""Match the keys of a file with those of this package, and find the config that they fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpn_jax.config import Config, config_names, load_config, replace
from rpn_jax.errors import UserError
from rpn_jax.models import variable_shapes
from rpn_jax.models.resnet import BLOCKS
from rpn_jax.weights.torch.names import STATISTICS, Shapes, flat_by_torch_key, torch_shape
from rpn_jax.weights.torch.report import ChosenBy
from rpn_jax.weights.torch.style import DetectedStyle
from rpn_jax.weights.torch.tables import SECOND_STAGE, ZOOS, Zoo

CLASSIFIER = "roi_head.bbox_head.fc_cls.weight"
"""Key of the layer that has an output for each class and for the background."""


MOST_DIFFERENCES = 10
"""A config with more differences from a file is not named as the nearest one."""


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


def match_config(match: KeyMatch, config: Config) -> KeyMatch:
    """Leave out the parts of a file that the config's model does not have.

    They are the second stage of a detector, and the last stages of a backbone. If the second stage
    applies ``layer4`` to each box, the ``layer4`` of a backbone file belongs to it.
    """
    roi = config.model.roi
    if match.zoo.kind == "detector":
        reason = "second stage, which a region proposal network does not have"
        return match if roi is not None else _without(match, SECOND_STAGE, reason)
    if roi is not None and roi.head == "layer4":
        sources = {
            re.sub(r"^backbone\.layer4\.", "roi_head.shared_head.layer4.", name): key
            for name, key in match.sources.items()
        }
        match = KeyMatch(match.zoo, sources, match.left_out)
    stages = config.model.backbone.num_stages
    reason = f"the config's backbone ends after stage {stages}"
    return _without(match, rf"backbone\.layer[{stages + 1}-9]\.", reason)


def _without(match: KeyMatch, pattern: str, reason: str) -> KeyMatch:
    """Leave out the names that begin with a pattern."""
    unused = {name for name in match.sources if re.match(pattern, name)}
    return KeyMatch(
        zoo=match.zoo,
        sources={name: key for name, key in match.sources.items() if name not in unused},
        left_out=match.left_out | {match.sources[name]: reason for name in sorted(unused)},
    )


def expected_shapes(config: Config, match: KeyMatch) -> Shapes:
    """Return the shapes that a file needs for a config.

    A backbone file needs those of the backbone, a file of an RPN those of the first stage, and a
    file of two stages all.
    """
    if match.zoo.kind == "backbone":
        pattern = r"backbone\.|roi_head\.shared_head\."
    else:
        pattern = "" if has_second_stage(match.sources) else r"(?!roi_head\.)"
    return {
        name: torch_shape(name, leaf.shape)
        for name, (_, leaf) in flat_by_torch_key(variable_shapes(config)).items()
        if re.match(pattern, name)
    }


def has_second_stage(names: Iterable[str]) -> bool:
    """Return whether MMDetection's keys include a box head."""
    return CLASSIFIER in names


def with_classes_of_file(config: Config, found: Shapes, metadata: Mapping[str, Any]) -> Config:
    """Return a config with the number of classes of a file and their names.

    The names are those in the file's metadata. If it has none, or another number of them, they are
    the config's, or the default names if the config has another number of classes.
    """
    if config.model.roi is None or not has_second_stage(found):
        return config
    count = found[CLASSIFIER][0] - 1
    names = class_names_in_metadata(metadata)
    if len(set(names)) != count or len(names) != count:
        names = config.model.roi.class_names if config.model.roi.num_classes == count else ()
    roi = replace(config.model.roi, num_classes=count, class_names=names)
    return replace(config, model=replace(config.model, roi=roi))


def class_names_in_metadata(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names that MMDetection 2.x or 3.x stored in a file, or an empty tuple."""
    meta = metadata.get("meta")
    if not isinstance(meta, dict):
        return ()
    dataset = meta.get("dataset_meta")
    places = (dataset, meta) if isinstance(dataset, dict) else (meta,)
    lists = [place.get(key) for place in places for key in ("classes", "CLASSES")]
    return next((tuple(map(str, names)) for names in lists if isinstance(names, list)), ())


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

    A file of two stages fits a Faster R-CNN with its number of classes. Other files fit an RPN.

    Backbones of the styles 'caffe' and 'pytorch' have the same shapes. The published file name or
    the detected style selects one of them.

    Raises:
      UserError: no config fits, or several configs fit that are different models.
    """
    two_stages = has_second_stage(found)
    configs = [
        with_classes_of_file(config, found, {})
        for config in map(load_config, config_names())
        if (config.model.roi is not None) == two_stages
    ]
    fitting = [config for config in configs if fits(config, match, found)]
    if not fitting:
        raise UserError(
            f"weights {path}: holds {describe(found)}, and no config of this package fits. "
            + _describe_nearest(_likely_first(configs, detected, path), match, found)
            + "Give your own config with --config."
        )
    # Multi-scale configs have the models of others. Only a file name shows that one is meant.
    of_one_scale = [config for config in fitting if not config.data.drawn_short_sides] or fitting
    narrowed: list[tuple[ChosenBy, list[Config]]] = [
        ("file name", [config for config in fitting if _is_named_after(path, config)]),
        ("shapes", of_one_scale),
    ]
    if detected is not None:
        of_style = [c for c in of_one_scale if c.model.backbone.style == detected.style]
        narrowed.append((detected.by, of_style))
    for chosen_by, chosen in narrowed:
        if len({(config.model, config.pixels) for config in chosen}) == 1:
            return chosen[0], chosen_by
    names = ", ".join(config.name for config in fitting)
    raise UserError(f"weights {path}: fits several configs. Choose one with --config ({names}).")


def fits(config: Config, match: KeyMatch, found: Shapes) -> bool:
    """Return whether a file holds exactly the parameters of a config."""
    return not differences(config, match, found)


def differences(config: Config, match: KeyMatch, found: Shapes) -> list[str]:
    """Return what is different between a file and the parameters of a config, in words.

    An entry names a key that is missing, that the config does not have, or of another shape.
    """
    kept = match_config(match, config)
    expected = expected_shapes(config, kept)
    assumed = assumed_statistics(kept, expected)
    needed = {name: shape for name, shape in expected.items() if name not in assumed}
    shapes_by_key = {match.sources[name]: shape for name, shape in found.items()}
    used = {name: shapes_by_key[key] for name, key in kept.sources.items()}
    return [
        *(f"{name} is missing" for name in needed if name not in used),
        *(f"{kept.sources[name]} is not used" for name in used if name not in needed),
        *(
            f"{kept.sources[name]} has the shape {used[name]} instead of {shape}"
            for name, shape in needed.items()
            if name in used and used[name] != shape
        ),
    ]


def _likely_first(
    configs: Sequence[Config], detected: DetectedStyle | None, path: Path
) -> list[Config]:
    """Return the configs, first those that the file is named after or whose style was detected."""
    style = detected.style if detected is not None else "pytorch"

    def unlikeliness(config: Config) -> tuple[bool, bool]:
        return not _is_named_after(path, config), config.model.backbone.style != style

    return sorted(configs, key=unlikeliness)


def _describe_nearest(configs: Sequence[Config], match: KeyMatch, found: Shapes) -> str:
    """Name the first config with the fewest differences, and these if they are few."""
    nearest, listed = min(
        ((config, differences(config, match, found)) for config in configs),
        key=lambda pair: len(pair[1]),
    )
    if len(listed) > MOST_DIFFERENCES:
        return ""
    return f"The nearest is {nearest.name}, but {', '.join(listed)}. "


def describe(shapes: Shapes) -> str:
    """Describe the architecture that keys and shapes belong to, in words."""
    parts = [_describe_backbone(shapes)]
    if any(name.startswith("neck.") for name in shapes):
        parts.append("FPN")
    if "rpn_head.rpn_cls.weight" in shapes:
        parts.append(f"{shapes['rpn_head.rpn_cls.weight'][0]} anchors per cell")
    if CLASSIFIER in shapes:
        parts.append(f"second stage with {shapes[CLASSIFIER][0] - 1} classes")
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
    """Return whether a file is named like a config, with a date and digits if it is published.

    MMDetection 2.x writes 'mstrain' for 'ms'.
    """
    name = re.escape(config.name.replace("-", "_"))
    date_and_digits = r"(_bbox_mAP_0\.\d+)?(_20\d{6}\w*|_[0-9a-f]{8})?"
    file = path.name.replace("-", "_").replace("_mstrain_", "_ms_")
    return bool(re.fullmatch(rf"{name}{date_and_digits}\.\w+", file))
