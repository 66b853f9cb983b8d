"""Boxes and areas from the outlines ('segmentation') of a COCO file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from pycocotools import mask

from rpn_jax.files import read_file

T = TypeVar("T")


class RunLengths(msgspec.Struct):
    """A mask as run lengths, column by column."""

    size: tuple[int, int]
    """(height, width), pixels."""
    counts: list[int] | str
    """Lengths of the runs, 0 first, or their compressed form."""


Polygons = list[list[float]]
"""Closed polygons, each as x1, y1, x2, y2 ..."""
Outline = Polygons | RunLengths | None


class _Annotation(msgspec.Struct, gc=False):
    segmentation: Outline = None


class _Coco(msgspec.Struct):
    annotations: list[_Annotation]


def read_outlines(file: Path) -> list[Outline]:
    """Read the outline of each annotation.

    Raises:
      msgspec.DecodeError: an outline has another form.
      UserError: the file cannot be read.
    """
    return [
        each.segmentation for each in msgspec.json.decode(read_file(file), type=_Coco).annotations
    ]


def convert_outline(value: Any) -> Outline:
    """Return the outline that a JSON value describes. Raises ValueError if there is none."""
    try:
        return msgspec.convert(value, Outline)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def box_and_area(outline: Outline) -> tuple[tuple[float, float, float, float], float]:
    """Return the box (x, y, width, height) around an outline, and its area, in pixels.

    The box of polygons reaches to their outermost corners, as COCO's own boxes do. The area of
    polygons that overlap is counted twice.

    Raises:
      ValueError: there is no outline, or it is broken.
    """
    if isinstance(outline, RunLengths):
        return _box_and_area_of_mask(outline)
    if not outline or any(len(polygon) < 6 or len(polygon) % 2 for polygon in outline):
        raise ValueError("a polygon needs 3 or more points x, y")
    corners = [np.array(polygon).reshape(-1, 2) for polygon in outline]
    low = np.min([polygon.min(axis=0) for polygon in corners], axis=0)
    high = np.max([polygon.max(axis=0) for polygon in corners], axis=0)
    x, y, width, height = np.concatenate([low, high - low]).tolist()
    return (x, y, width, height), sum(map(_polygon_area, corners))


def _polygon_area(corners: np.ndarray) -> float:
    x, y = corners.T
    return float(abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2)


def _box_and_area_of_mask(runs: RunLengths) -> tuple[tuple[float, float, float, float], float]:
    height, width = runs.size
    if isinstance(runs.counts, str):
        encoded: dict[str, Any] = {"size": [height, width], "counts": runs.counts.encode()}
    else:
        _check_runs(runs.counts, height * width)
        encoded = mask.frPyObjects({"size": [height, width], "counts": runs.counts}, height, width)
    x, y, box_width, box_height = mask.toBbox(encoded).tolist()
    return (x, y, box_width, box_height), float(mask.area(encoded))


def _check_runs(counts: Sequence[int], pixels: int) -> None:
    if min(counts, default=0) < 0 or sum(counts) != pixels:
        raise ValueError(f"its run lengths must be 0 or more and sum to {pixels}")
