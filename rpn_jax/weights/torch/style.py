"""Detect the style of a file's backbone, 'pytorch' or 'caffe'.

The style determines which convolution of a bottleneck has the stride, and the order and scale of
the pixels. Keys and shapes are the same in both. Weights of one style compute wrong features in a
network of the other without an error, so every available hint is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpn_jax.config import Config
from rpn_jax.errors import UserError
from rpn_jax.weights.torch.download import digits_in_name
from rpn_jax.weights.torch.names import STATISTICS, Shapes
from rpn_jax.weights.torch.published import NAMED_FILES, NamedFile
from rpn_jax.weights.torch.report import ChosenBy
from rpn_jax.weights.torch.tables import Style, Zoo


@dataclass(frozen=True)
class DetectedStyle:
    """The style of a file's backbone."""

    style: Style
    by: ChosenBy
    """Hint from which the style was detected."""


def detect_style(
    source: str, path: Path, zoo: Zoo, found: Shapes, metadata: Mapping[str, Any]
) -> DetectedStyle | None:
    """Return the style of a file's backbone from the first hint, or None if there is no hint.

    Args:
      source: the source as the user named it.
      path: path of the file.
      zoo: zoo of the file's keys.
      found: shapes in the file.
      metadata: metadata in the file.
    """
    hints: tuple[tuple[ChosenBy, Style | None], ...] = (
        ("published name", published_style(source, path.name)),
        ("metadata", style_in_metadata(metadata)),
        ("keys", style_of_keys(zoo, found)),
    )
    return next((DetectedStyle(style, by) for by, style in hints if style is not None), None)


def published_style(source: str, file_name: str) -> Style | None:
    """Return the style of a file that `published_file` finds, or None."""
    file = published_file(source, file_name)
    return file.style if file is not None else None


def published_file(source: str, file_name: str) -> NamedFile | None:
    """Return one of `NAMED_FILES`, given by name, URL or the file name of a copy, or None.

    A file name must end in digits of the SHA-256. Others, such as ``R-50.pkl``, are ambiguous.
    """
    is_published = digits_in_name(file_name) is not None
    for name, file in NAMED_FILES.items():
        if source in (name, file.url) or (is_published and file.url.endswith(f"/{file_name}")):
            return file
    return None


def style_in_metadata(metadata: Mapping[str, Any]) -> Style | None:
    """Return the style that a stored MMDetection config names, or None for none or both."""
    text = json.dumps(metadata)
    styles: set[Style] = set(re.findall(r"style=\\?['\"](pytorch|caffe)\\?['\"]", text))
    return styles.pop() if len(styles) == 1 else None


def style_of_keys(zoo: Zoo, found: Shapes) -> Style | None:
    """Return the style of a ResNet backbone, or None if its keys do not determine it.

    A zoo can have a single style. ResNets whose norms only scale and shift come from Caffe.
    """
    features, per_group = found.get("backbone.layer1.0.conv2.weight", (0, 0))[:2]
    if features != per_group or zoo.kind == "detector":
        return None
    holds_statistics = any(name.rpartition(".")[2] in STATISTICS for name in found)
    if "backbone.bn1.weight" in found and not holds_statistics:
        return "caffe"
    return zoo.resnet_style


def check_style(config: Config, detected: DetectedStyle | None, path: Path) -> None:
    """Raise a UserError if a file has a style that is not the config's. The shapes would match."""
    backbone = config.model.backbone
    if detected is None or detected.style == backbone.style or backbone.depth < 50:
        return
    raise UserError(
        f"weights {path}: has the style '{detected.style}' according to its {detected.by}, but "
        f"config {config.name} has '{backbone.style}'. Use a config or weights of the same style."
    )
