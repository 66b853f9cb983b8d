"""Check the values of a config. The error names the key, the value and the allowed values."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rpn_jax.errors import UserError


def check(holds: bool, key: str, value: object, allowed: str) -> None:
    """Raise a UserError unless ``holds``. It says which values are allowed for a dotted key."""
    if not holds:
        raise UserError(f"{key} = {value!r}: must be {allowed}")


def check_part(config: object, part: type, argument: str = "config") -> None:
    """Raise a UserError if an argument is not the part of the config that a function needs.

    Args:
      config: the argument: a `Config`, one of its sections, or anything else by mistake.
      part: the class that the function needs.
      argument: name of the argument.
    """
    if isinstance(config, part):
        return
    names = [each.name for each in fields(config)] if is_dataclass(config) else []
    fitting = [name for name in names if isinstance(getattr(config, name), part)]
    hint = f". Use its part .{fitting[0]}" if fitting else ""
    name = type(config).__name__
    raise UserError(f"{argument}: is of type {name}: must be a {part.__name__}{hint}")


def check_types(section: str, config: Any) -> None:
    """Raise a UserError for the first field whose value does not have the annotated type.

    Args:
      section: dotted key of the section, empty for the whole config.
      config: the section, a dataclass.
    """
    for key, hint in get_type_hints(type(config)).items():
        value = getattr(config, key)
        if not _is_of_type(value, hint):
            name = f"{section}.{key}" if section else key
            of_numpy = type(value).__module__ == "numpy"
            remedy = ", of Python and not of NumPy: use .item() or tuple()" if of_numpy else ""
            check(False, name, value, _type_text(hint) + remedy)


def _is_of_type(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin is UnionType:
        return any(_is_of_type(value, kind) for kind in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(_is_of_type(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_is_of_type, value, arguments))
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _type_text(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is UnionType:
        return " or ".join("none" if kind is NoneType else _type_text(kind) for kind in arguments)
    if origin is tuple:
        return f"a tuple of {_items_text(hint)}"
    return {int: "a whole number", float: "a finite number", bool: "true or false"}.get(
        hint, "a string" if hint is str else f"a {getattr(hint, '__name__', hint)}"
    )


def _items_text(hint: Any) -> str:
    """Return the text for the items of a tuple type, such as '2 whole numbers'."""
    first, *others = get_args(hint)
    count = "" if others == [Ellipsis] else f"{1 + len(others)} "
    if get_origin(first) is tuple:
        return f"{count}tuples of {_items_text(first)}"
    names = {int: "whole numbers", float: "finite numbers", str: "strings"}
    return count + names[first]
