"""Boxes and areas from the outlines ('segmentation') of a COCO file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from pycocotools import mask

from rpn_jax.files import read_file, read_json

LARGEST = 2.0**40
"""Largest number of pixels that a coordinate or an area may have. OpenCV reads no larger sides than
2**20."""
Pixels = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
"""A coordinate."""
MAX_RUN = 2**32 - 1
"""Longest run that pycocotools can hold."""


class RunLengths(msgspec.Struct):
    """A mask as run lengths, column by column."""

    size: tuple[int, int]
    """(height, width), pixels."""
    counts: list[int] | str
    """Lengths of the runs, 0 first, or their compressed form."""


Polygons = list[list[Pixels]]
"""Closed polygons, each as x1, y1, x2, y2 ..."""
Outline = Polygons | RunLengths | None


class _Annotation(msgspec.Struct, gc=False):
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _Coco(msgspec.Struct):
    annotations: list[_Annotation]


def read_outlines(file: Path, positions: Sequence[int]) -> list[Outline]:
    """Read the outlines of some annotations. Those of the others may have any form.

    Args:
      file: a COCO file.
      positions: places of the annotations in the file's list.

    Raises:
      ValueError: an outline has another form.
      UserError: the file cannot be read.
    """
    try:
        coco = msgspec.json.decode(read_file(file), type=_Coco)
        outlines = [coco.annotations[position].segmentation for position in positions]
        return [msgspec.json.decode(outline, type=Outline) for outline in outlines]
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Python accepts what msgspec refuses: NaN in a field that is not used.
        annotations = read_json(file)["annotations"]
        return [convert_outline(annotations[at].get("segmentation")) for at in positions]


def convert_outline(value: Any) -> Outline:
    """Return the outline that a JSON value describes. Raises ValueError if there is none."""
    try:
        return msgspec.convert(value, Outline)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def box_and_area(
    outline: Outline, size: tuple[int, int] | None
) -> tuple[tuple[float, float, float, float], float]:
    """Return the box (x, y, width, height) around an outline, and its area, in pixels.

    The box of polygons reaches to their outermost corners, as COCO's own boxes do. The area of
    polygons that overlap is counted twice.

    Args:
      outline: polygons or run lengths.
      size: (height, width) of the picture, or None if the picture is unknown.

    Raises:
      ValueError: there is no outline, it is broken, or its run lengths are of another size.
    """
    if isinstance(outline, RunLengths):
        return _box_and_area_of_mask(outline, size)
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


def _box_and_area_of_mask(
    runs: RunLengths, size: tuple[int, int] | None
) -> tuple[tuple[float, float, float, float], float]:
    height, width = runs.size
    if runs.size != size:
        raise ValueError(f"its size is {[height, width]}, but that of its picture is {size}")
    counts = _decode_runs(runs.counts) if isinstance(runs.counts, str) else runs.counts
    pixels = height * width
    if min(counts, default=0) < 0 or max(counts, default=0) > MAX_RUN or sum(counts) != pixels:
        raise ValueError(f"its run lengths must be 0 to {MAX_RUN} and sum to {pixels}")
    encoded = mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    x, y, box_width, box_height = mask.toBbox(encoded).tolist()
    return (x, y, box_width, box_height), float(mask.area(encoded))


def _decode_runs(text: str) -> list[int]:
    """Return the run lengths that COCO's compressed form stands for.

    A run is written as its difference to the run before the last, from the fourth run on, in groups
    of 5 bits from the lowest. Each group is a character from '0': its bit 5 says whether another
    one follows, and bit 4 of the last one is the sign. pycocotools decodes this too, but it neither
    checks the text nor returns the runs.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - ord("0")
        if not 0 <= group < 64:
            raise ValueError(f"{character!r} is not a character of compressed run lengths")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs
