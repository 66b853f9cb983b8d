"""JSON files: read with one line for what is wrong, written whole or not at all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rpn_jax.errors import UserError
from rpn_jax.output import written_whole


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
      UserError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from None


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON; the file appears whole or not at all.

    Raises:
      UserError: the path cannot be written.
    """
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def json_figures(figures: dict[str, float]) -> dict[str, float | None]:
    """The figures for JSON, which has no NaN (a recall without any box to find): None for it."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}
