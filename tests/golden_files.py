"""Where the reference's figures lie: copies in the repository, and the originals beside it."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "golden"
PICTURE = FOLDER / "BloodImage_00007.jpg"
"""What the cases of a picture file were computed from."""
ORIGINALS = FOLDER.parents[2] / "shared" / "golden"
