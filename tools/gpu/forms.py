"""Run the forms of operations that GPUs run, on any platform."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax

T = TypeVar("T")


def use_default_forms() -> None:
    """Make `jax.lax.platform_dependent` take its default branch from now on."""
    jax.lax.platform_dependent = default_form  # type: ignore[assignment]
    jax.clear_caches()


def default_form(*args: object, default: Callable[..., T], **forms: object) -> T:
    """Return the result of the default branch of a `jax.lax.platform_dependent`."""
    return default(*args)
