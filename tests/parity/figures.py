"""Where the reference's figures lie: all beside the checkout, or the small ones copied into it."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
COPIES = Path(__file__).resolve().parents[1] / "golden"
FOLDER = SHARED if SHARED.is_dir() else COPIES

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="not copied into the repository, and not beside the checkout"
)
