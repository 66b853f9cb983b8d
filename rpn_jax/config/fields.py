"""List the fields of a config, and those in which two configs differ."""

from __future__ import annotations

import dataclasses
from typing import Any


def config_fields(section: Any, prefix: str = "") -> dict[str, Any]:
    """Return the value of every field of a dataclass, by its dotted key.

    A field that holds another dataclass is replaced by the fields of that dataclass.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        key, value = prefix + field.name, getattr(section, field.name)
        is_section = dataclasses.is_dataclass(value)
        values |= config_fields(value, f"{key}.") if is_section else {key: value}
    return values


def config_changes(before: Any, now: Any) -> list[tuple[str, Any, Any]]:
    """Return (key, value before, value now) of every field in which two configs differ.

    The value of a field is None in a config without the section of the field.
    """
    old, new = config_fields(before), config_fields(now)
    pairs = {key: (old.get(key), new.get(key)) for key in {**old, **new}}
    return [(key, *pair) for key, pair in pairs.items() if pair[0] != pair[1]]
