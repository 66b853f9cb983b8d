"""Check the array shapes in annotations while the tests run.

Set RPN_JAX_CHECK_SHAPES=1 to switch it on. Importing this module then imports the modules in
`CHECKED` so that every call of their functions is checked: jaxtyping compares shapes and dtypes
with the annotations, beartype all other types.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import typing

import beartype  # noqa: F401
import flax.linen  # noqa: F401
from jaxtyping import install_import_hook

import rpn_jax  # noqa: F401

CHECKED = ("rpn_jax.structures", "rpn_jax.ops", "rpn_jax.models")


def import_checked(names: tuple[str, ...]) -> None:
    """Import modules, and the modules of packages, with all their annotations checked.

    The package imports jaxtyping only for type checkers, because users do not need it. A name that
    is missing at run time would silently disable the checks of a function. `TYPE_CHECKING` is
    therefore true during these imports. All packages they use are imported above, so that it
    changes nothing there.
    """
    for name in sys.modules:
        assert not name.startswith(names), f"{name} is already imported, so it is not checked."
    typing.TYPE_CHECKING = True
    try:
        with install_import_hook(names, typechecker="beartype.beartype"):
            for name in names:
                module = importlib.import_module(name)
                for found in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}."):
                    importlib.import_module(found.name)
    finally:
        typing.TYPE_CHECKING = False


if os.environ.get("RPN_JAX_CHECK_SHAPES") == "1":
    import_checked(CHECKED)
