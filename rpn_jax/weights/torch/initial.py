"""Load the weights that training starts from: ``train.init_weights``."""

from __future__ import annotations

from pathlib import Path

from flax.traverse_util import flatten_dict

from rpn_jax.config import BackboneConfig, Config
from rpn_jax.errors import reading
from rpn_jax.models import init_variables, variable_shapes
from rpn_jax.structures import Variables
from rpn_jax.weights.folders import check_same_model, load_variables
from rpn_jax.weights.torch.conversion import read_converted
from rpn_jax.weights.torch.names import nest
from rpn_jax.weights.torch.tables import NAMED_FILES
from rpn_jax.weights.trees import check_variables

SHARED_SECTIONS = ("model.backbone.", "pixels.")
"""Config sections that must be the same in the weights and in the model that starts from them."""


def initial_variables(config: Config, source: str) -> Variables:
    """Load weights for a config. If they hold only a backbone, the rest gets random values.

    Args:
      config: the model to train. ``train.seed`` is the seed of the random values.
      source: a folder of weights, a work directory, or a source that `convert` accepts: a ``.pth``
        or ``.pkl`` file, an https URL, or a name such as ``torchvision://resnet50``.

    Returns:
      All variables of the config, nested dicts of float32 arrays.

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
    shapes = variable_shapes(config)
    if set(variables["params"]) != {"backbone"}:
        check_variables(shapes, variables, source)
        return variables
    check_variables(_part(shapes, of_backbone=True), variables, source)
    neck_and_head = _part(init_variables(config, config.train.seed), of_backbone=False)
    return nest(flatten_dict(variables) | flatten_dict(neck_and_head))


def published_backbone(backbone: BackboneConfig) -> str | None:
    """Return the name of published ImageNet weights that fit a backbone, or None."""
    depth, width = backbone.depth, backbone.base_width
    if backbone.norm == "group":
        return None
    if (backbone.groups, width) != (1, 64):
        name = f"open-mmlab://resnext{depth}_{backbone.groups}x{width}d"
    elif backbone.style == "caffe" and depth >= 50:
        name = f"open-mmlab://detectron2/resnet{depth}_caffe"
    else:
        name = f"torchvision://resnet{depth}"
    return name if name in NAMED_FILES else None


def _part(variables: Variables, of_backbone: bool) -> Variables:
    """Return the variables of the backbone, or all others."""
    flat = flatten_dict(variables)
    return nest({path: flat[path] for path in flat if (path[1] == "backbone") == of_backbone})
