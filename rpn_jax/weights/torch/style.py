"""The style of a file's backbone: 'pytorch' or 'caffe', which keys and shapes have in common.

The style decides where bottlenecks stride, and goes with the order and scale of pixels. Weights of
the one compute nonsense as the other, without any error, so whatever tells it is heeded.
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
from rpn_jax.weights.torch.report import ChosenBy
from rpn_jax.weights.torch.tables import NAMED_FILES, Style, Zoo


@dataclass(frozen=True)
class ToldStyle:
    """The style of a file's backbone, and what tells it."""

    style: Style
    by: ChosenBy


def told_style(
    source: str, path: Path, zoo: Zoo, found: Shapes, metadata: Mapping[str, Any]
) -> ToldStyle | None:
    """The style of a file's backbone, by the first that tells it; None where nothing does.

    Args:
      source: as it was named.
      path: the file.
      zoo: of its keys.
      found: its shapes.
      metadata: what it says about itself.
    """
    told: tuple[tuple[ChosenBy, Style | None], ...] = (
        ("published name", published_style(source, path.name)),
        ("metadata", style_in_metadata(metadata)),
        ("keys", style_of_keys(zoo, found)),
    )
    return next((ToldStyle(style, by) for by, style in told if style is not None), None)


def published_style(source: str, file_name: str) -> Style | None:
    """The style of one of `NAMED_FILES`, by its name, its URL, or the file name of a copy.

    A file name counts where it ends in digits of the SHA-256; ``R-50.pkl`` may be anything.
    """
    is_published = digits_in_name(file_name) is not None
    for name, file in NAMED_FILES.items():
        if source in (name, file.url) or (is_published and file.url.endswith(f"/{file_name}")):
            return file.style
    return None


def style_in_metadata(metadata: Mapping[str, Any]) -> Style | None:
    """The style, if the config text that MMDetection stores names one of the two."""
    text = json.dumps(metadata)
    styles: set[Style] = set(re.findall(r"style=\\?['\"](pytorch|caffe)\\?['\"]", text))
    return styles.pop() if len(styles) == 1 else None


def style_of_keys(zoo: Zoo, found: Shapes) -> Style | None:
    """The style of a ResNet whose zoo has but one, or whose norms only scale and shift: Caffe's."""
    features, per_group = found.get("backbone.layer1.0.conv2.weight", (0, 0))[:2]
    if features != per_group or zoo.kind == "detector":
        return None
    holds_statistics = any(name.rpartition(".")[2] in STATISTICS for name in found)
    if "backbone.bn1.weight" in found and not holds_statistics:
        return "caffe"
    return zoo.resnet_style


def check_style(config: Config, told: ToldStyle | None, path: Path) -> None:
    """Refuse a file that is known to be of the other style; its shapes would not tell."""
    backbone = config.model.backbone
    if told is None or told.style == backbone.style or backbone.depth < 50:
        return
    raise UserError(
        f"weights {path}: is of style '{told.style}' by its {told.by}, but config {config.name} "
        f"has '{backbone.style}'; name a config of that style, or weights of the config's"
    )
