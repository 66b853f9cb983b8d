"""Files that a command writes: folders that can be written, JSON that is whole or not there."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from rpn_jax.errors import UserError


def make_folder(folder: Path) -> None:
    """Make a folder, and make sure before long work that it can be written.

    Raises:
      UserError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"folder {folder}: cannot be written ({error.strerror}); choose another one"
        ) from None


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON; the file appears whole or not at all.

    Raises:
      UserError: the path cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)
