"""What a detector requires of its backbone, and backbones of users by the name of their class."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import flax.linen as nn

from rpn_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from rpn_jax.config import Config


@runtime_checkable
class Backbone(Protocol):
    """A Flax module that maps pictures to feature maps with known strides.

    `rpn_jax.models.resnet.ResNet` is one. Any module with these members can take its place. The
    config names its class (`model.backbone_class`), or a call passes the module itself:
    ``RPN(config.model, backbone=module)``.

    Its parameters must not depend on the size of the pictures. It computes in a precision of its
    own, whatever `model.precision` is. While training, it can ask for random keys by the name
    "dropout", and change the collection "batch_stats". A batch norm normalises with the statistics
    of one device's pictures, or those of all if it names their axis,
    `rpn_jax.training.gradients.DEVICE_AXIS`. Floating-point statistics are always averaged over the
    devices.
    """

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between the cells of each feature map, finest first, doubling if it has an FPN."""

    @property
    def norm_of(self) -> Mapping[str, str] | None:
        """Name of the norm with stored statistics that follows each convolution, by its name.

        Both are children of the same module, and hold the weights of `ConvWeights` and `FrozenNorm`
        (`rpn_jax.models.layers`). `rpn_jax.models.folding.fold_norms` folds them for inference,
        which makes a module with ``folded=True``: its convolutions have a bias and no norm.
        None: it leaves all weights of this backbone as they are.
        """

    def __call__(
        self, images: Float[Array, "B H W 3"], train: bool
    ) -> tuple[Float[Array, "B h w C"], ...]:
        """Return one feature map for each stride, with ceil(H / stride) rows, columns likewise.

        Args:
          images: normalised pictures, zeros as padding.
          train: whether batch norm uses and updates the statistics of this batch.
        """

    def trains(self, path: tuple[str, ...]) -> bool:
        """Return whether the optimiser changes the parameter at this path in the backbone.

        A path is, for example, ``("layer1", "conv", "kernel")``.
        """


MEMBERS = ("strides", "norm_of", "trains", "__call__")
"""Members that the class of a backbone has, or inherits."""


def backbone_of_class(name: str, folded: bool) -> Backbone:
    """Return a new module of the class that ``model.backbone_class`` names.

    Args:
      name: module and class, such as ``my_package.my_module:MyBackbone``.
      folded: value of the class's field of that name, if its ``norm_of`` is not None.

    Raises:
      UserError: there is no such class, it cannot be made without arguments, or a member of
        `Backbone` is missing or of another type.
    """
    kind = _class_named(name)
    try:
        # No parent: the detector adopts it, even if the detector itself is part of another module.
        backbone = kind(parent=None)
        problem = _problem(kind, backbone)
        if not problem and backbone.norm_of is not None:
            backbone = kind(folded=folded, parent=None)
    except TypeError as error:
        raise UserError(
            f"model.backbone_class = {name!r}: cannot be made without arguments ({error}). Give "
            "its fields default values."
        ) from error
    if problem:
        raise UserError(
            f"model.backbone_class = {name!r}: {problem}. rpn_jax.models.backbone.Backbone "
            "describes what a backbone needs."
        )
    return backbone


def _problem(kind: type[nn.Module], backbone: Any) -> str:
    """Return what prevents a module from being a backbone, or ''."""
    # Not `hasattr`, because every class itself can be called.
    present = {name for base in kind.__mro__ for name in vars(base)}
    missing = [member for member in MEMBERS if member not in present]
    if missing:
        return f"the class has no {', '.join(missing)}"
    strides, norm_of = backbone.strides, backbone.norm_of
    if not isinstance(strides, tuple) or not strides or {type(each) for each in strides} != {int}:
        return f"strides is {strides!r}: must be a tuple of whole numbers"
    if not callable(backbone.trains):
        return f"trains is {backbone.trains!r}: must be a method"
    if norm_of is not None and not isinstance(norm_of, Mapping):
        return f"norm_of is {norm_of!r}: must be None or a dict"
    if norm_of is not None and "folded" not in kind.__dataclass_fields__:
        return f"norm_of is {norm_of!r}: the class needs a field 'folded: bool = False', too"
    try:
        inspect.signature(backbone).bind(None, True)
    except TypeError as error:
        return f"__call__ cannot be called with (images, train): {error}"
    return ""


def check_resnet(config: Config, where: str) -> None:
    """Raise a UserError if a config has another backbone than a ResNet.

    Args:
      config: the config.
      where: what needs a ResNet: the first words of the message.
    """
    name = config.model.backbone_class
    if name:
        raise UserError(
            f"{where}: model.backbone_class = {name!r}: PyTorch has no names for the weights of "
            "such a backbone. Use a ResNet here, or a folder of weights of rpn_jax."
        )


def _class_named(name: str) -> Any:
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the code of a user can raise anything
        is_absent = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(
            f"{error.name}."
        )
        if is_absent:
            problem = (
                f"there is no module {module_name}. Install it, add its folder to PYTHONPATH, or "
                "run the command in its folder."
            )
        else:
            problem = f"module {module_name} fails with {type(error).__name__}: {error}"
        raise UserError(f"model.backbone_class = {name!r}: {problem}") from error
    kind = getattr(module, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        modules = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, nn.Module)
        ]
        raise UserError(
            f"model.backbone_class = {name!r}: module {module_name} has no Flax module "
            f"'{class_name}'{nearest(class_name, modules)}"
        )
    return kind
