"""Paths of the reference's figures (copies, and the originals beside the checkout) and of BCCD."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "golden"
BCCD = FOLDER.parents[1] / "examples" / "bccd"
"""The small real dataset of this repository, in COCO format."""
PICTURE = BCCD / "test" / "BloodImage_00007.jpg"
"""What the cases of a picture file were computed from."""
ORIGINALS = FOLDER.parents[2] / "shared" / "golden"
