"""Load the weights that training starts from: ``train.init_weights``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from rpn_jax.config import BackboneConfig, Config
from rpn_jax.errors import reading
from rpn_jax.models import init_variables, variable_shapes
from rpn_jax.structures import Variables
from rpn_jax.weights.folders import check_same_model, load_variables
from rpn_jax.weights.torch.conversion import read_converted
from rpn_jax.weights.torch.names import VariablePath, nest
from rpn_jax.weights.torch.published import NAMED_FILES
from rpn_jax.weights.trees import check_variables

SHARED_SECTIONS = ("model.backbone.", "model.backbone_class", "pixels.")
"""Config sections that must be the same in the weights and in the model that starts from them."""
CLASS_LAYERS = ("fc_cls", "fc_reg")
"""Layers of the second stage that have outputs for each class."""
CLASS_BIAS: VariablePath = ("params", "roi_head", "bbox_head", "fc_cls", "bias")
"""Variable with an element for each class and for the background."""


class InitialVariables(NamedTuple):
    """Variables that training starts from."""

    variables: Variables
    """All variables of the config, nested dicts of float32 arrays."""
    summary: str
    """One line: which modules were loaded, and which start from random values."""


def initial_variables(config: Config, source: str) -> InitialVariables:
    """Load weights for a config. Modules that the weights do not hold get random values.

    Weights may hold a backbone, an RPN or a Faster R-CNN. The layers with an output for each class
    are loaded only if the weights have as many classes as the config.

    Args:
      config: the model to train. ``train.seed`` is the seed of the random values.
      source: a folder of weights, a work directory, or a source that `convert` accepts: a ``.pth``
        or ``.pkl`` file, an https URL, or a name such as ``torchvision://resnet50``.

    Raises:
      UserError: the source cannot be downloaded or read, or does not match the config.
    """
    with reading(f"weights {source}"):
        is_folder = Path(source).is_dir()
    if is_folder:
        variables = load_variables(source)
        check_same_model(config, source, SHARED_SECTIONS)
    else:
        variables = read_converted(source, config).variables
    held, expected = flatten_dict(variables), flatten_dict(variable_shapes(config))
    used = {path: leaf for path, leaf in held.items() if _is_used(path, leaf, expected, config)}
    parts = {_part(path) for path in used}
    needed = {
        path: leaf
        for path, leaf in expected.items()
        if _part(path) in parts and (path in used or path not in held)
    }
    check_variables(nest(needed), nest(used), source)
    random = {}
    if used.keys() != expected.keys():
        random = flatten_dict(init_variables(config, config.train.seed))
    filled = {path: used[path] if path in used else random[path] for path in expected}
    return InitialVariables(nest(filled), _summary(source, held, used, expected))


def published_backbone(backbone: BackboneConfig) -> str | None:
    """Return the name of published ImageNet weights that fit a backbone, or None."""
    depth, width = backbone.depth, backbone.base_width
    if backbone.norm == "group":
        return None
    if (backbone.groups, width) != (1, 64):
        origin = "detectron2/" if width == 8 else ""
        name = f"open-mmlab://{origin}resnext{depth}_{backbone.groups}x{width}d"
    elif backbone.style == "caffe" and depth >= 50:
        name = f"open-mmlab://detectron2/resnet{depth}_caffe"
    else:
        name = f"torchvision://resnet{depth}"
    return name if name in NAMED_FILES else None


def _is_used(
    path: VariablePath, leaf: Any, expected: dict[VariablePath, Any], config: Config
) -> bool:
    """Return False for the second stage if the config has none, and for layers of other classes."""
    if path[1] != "roi_head":
        return True
    if config.model.roi is None:
        return False
    is_of_classes = path[3] in CLASS_LAYERS
    return not is_of_classes or path not in expected or leaf.shape == expected[path].shape


def _part(path: VariablePath) -> str:
    """Return the part of a detector that a variable belongs to. Weights hold all of a part."""
    if path[1] == "roi_head":
        return path[2]
    return "backbone" if path[1] == "backbone" else "first stage"


def _summary(
    source: str,
    held: dict[VariablePath, Any],
    used: dict[VariablePath, Any],
    expected: dict[VariablePath, Any],
) -> str:
    random = [path for path in expected if path not in used]
    texts = [
        f"loaded {_modules(used)}",
        f"random values for {_modules(random)}" if random else "",
        _class_text(held, expected),
        f"not used: {_modules(path for path in held if path not in expected)}"
        if held.keys() - expected.keys()
        else "",
    ]
    return f"weights {source}: {'; '.join(filter(None, texts))}"


def _class_text(held: dict[VariablePath, Any], expected: dict[VariablePath, Any]) -> str:
    if CLASS_BIAS not in held or CLASS_BIAS not in expected:
        return ""
    theirs, ours = (tree[CLASS_BIAS].shape[0] - 1 for tree in (held, expected))
    return f"{theirs} classes in the weights, {ours} in the config" if theirs != ours else ""


def _modules(paths: Iterable[VariablePath]) -> str:
    """Return the names of the modules that variables belong to."""
    names = (path[1:4] if path[1] == "roi_head" else path[1:2] for path in paths)
    return ", ".join(sorted({".".join(name) for name in names}))
