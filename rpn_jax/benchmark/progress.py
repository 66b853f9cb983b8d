"""Say what is being measured."""

from __future__ import annotations

import sys


def say(what: str) -> None:
    """Print on stderr what is being measured."""
    print(f"measuring {what} ...", file=sys.stderr, flush=True)
