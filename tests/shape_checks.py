"""Check the array shapes in annotations while the tests run.

Importing this module imports the modules in `CHECKED` so that every call of their functions is
checked: jaxtyping compares shapes and dtypes with the annotations, beartype all other types. The
fixture ``no_shape_checks`` switches the checks off for a test of wrong arguments.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import typing
from unittest import mock

import beartype  # noqa: F401
import flax.linen  # noqa: F401
import jax
import jaxtyping
import numpy as np

import rpn_jax  # noqa: F401

# Not structures: JAX rebuilds them with axes, shardings or shapes in place of arrays.
CHECKED = ("rpn_jax.ops", "rpn_jax.models")


def import_checked(names: tuple[str, ...]) -> None:
    """Import modules, and the modules of packages, with all their annotations checked.

    The package imports jaxtyping only for type checkers, because users do not need it. A name that
    is missing at run time would silently disable the checks of a function. `TYPE_CHECKING` is
    therefore true during these imports. All packages they use are imported above, so that it
    changes nothing there. NumPy arrays are accepted in place of JAX arrays, as `jax.jit` does.
    """
    for name in sys.modules:
        assert not name.startswith(names), f"{name} is already imported, so it is not checked."
    with (
        mock.patch.object(typing, "TYPE_CHECKING", True),
        mock.patch.object(jaxtyping, "Array", jax.Array | np.ndarray),
        jaxtyping.install_import_hook(names, typechecker="beartype.beartype"),
    ):
        for name in names:
            module = importlib.import_module(name)
            for found in pkgutil.walk_packages(module.__path__, f"{name}."):
                importlib.import_module(found.name)


import_checked(CHECKED)
