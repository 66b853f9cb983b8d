"""Pictures with their proposals and ground truth.

Colours are told apart with any colour vision: proposals go along viridis, from blue (lowest
score drawn) to yellow (highest), ground truth is dashed white. Every line and text has a dark
edge, so that it shows on any background.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rpn_jax.errors import UserError, writing

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from numpy import ndarray

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

MIN_LONG_SIDE = 960
"""Smaller pictures are enlarged to this many pixels, so that labels can be read."""
VIRIDIS = np.array(
    [(59, 82, 139), (44, 114, 142), (33, 145, 140), (94, 201, 98), (170, 220, 50), (253, 231, 37)]
)
DARK: Colour = (20, 20, 24)
LIGHT: Colour = (255, 255, 255)


@dataclass(frozen=True)
class Pen:
    """Sizes in pixels that suit a canvas of some size."""

    line: int
    edge: int
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    gap: int

    @classmethod
    def for_size(cls, width: int, height: int) -> Pen:
        """Sizes that grow with the side of a square of the same area."""
        unit = math.sqrt(width * height) / 800
        return cls(
            line=max(2, round(2.5 * unit)),
            edge=max(1, round(unit)),
            font=ImageFont.load_default(size=max(13, round(14 * unit))),
            gap=max(4, round(5 * unit)),
        )


def draw_boxes(
    image: UInt8[ndarray, "H W 3"],
    boxes_xyxy: Float[ndarray, "n 4"],
    scores: Float[ndarray, " n"] | None = None,
    ground_truth_xyxy: Float[ndarray, "G 4"] | None = None,
) -> UInt8[ndarray, "height width 3"]:
    """Draw proposals, and ground truth if given, over a picture, with a legend below it.

    A score is written beside its box where there is room for it; the best boxes come first.

    Args:
      image: RGB, of any size. Below `MIN_LONG_SIDE` it is enlarged.
      boxes_xyxy: pixels of ``image``.
      scores: colour the boxes, and are written beside them; None draws all boxes alike.
      ground_truth_xyxy: pixels of ``image``.

    Returns:
      RGB, the enlarged picture with the legend's rows below it.
    """
    scale = max(1.0, MIN_LONG_SIDE / max(image.shape[:2]))
    canvas = Image.fromarray(image)
    if scale > 1:
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        canvas = canvas.resize(size, Image.Resampling.BICUBIC)
    pen = Pen.for_size(*canvas.size)
    draw = ImageDraw.Draw(canvas)
    truth = np.zeros((0, 4)) if ground_truth_xyxy is None else ground_truth_xyxy
    rectangles = [_rectangle(box, scale, canvas.size) for box in boxes_xyxy]
    colours = _colours(len(boxes_xyxy), scores)
    worst_first = np.arange(len(boxes_xyxy))[::-1] if scores is None else np.argsort(scores)

    for index in worst_first:
        _draw_solid(draw, rectangles[index], colours[index], pen)
    for box in truth:
        _draw_dashed(draw, _rectangle(box, scale, canvas.size), pen)
    if scores is not None:
        taken: list[Rectangle] = []
        for index in worst_first[::-1]:
            text = f"{scores[index]:.2f}"
            spot = _free_spot(rectangles[index], _text_size(text, pen), taken, canvas.size, pen)
            if spot is not None:
                taken.append(spot)
                _draw_label(draw, spot, text, colours[index], pen)
    return np.asarray(_with_legend(canvas, scores, len(boxes_xyxy), ground_truth_xyxy, pen))


def save_picture(path: Path, image: UInt8[ndarray, "H W 3"]) -> None:
    """Write an RGB picture in the format of its name's ending.

    Raises:
      UserError: an ending that names no format, or a path that cannot be written.
    """
    with writing(f"picture {path}"):
        try:
            Image.fromarray(image).save(path)
        except ValueError:
            raise UserError(
                f"picture {path}: '{path.suffix}' is no picture format; use .png"
            ) from None


def _rectangle(box: Any, scale: float, size: tuple[int, int]) -> Rectangle:
    """Whole pixels of the canvas, both corners inside it."""
    width, height = size
    left, top, right, bottom = (round(float(value) * scale) for value in box)
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return left, top, min(max(right - 1, left), width - 1), min(max(bottom - 1, top), height - 1)


def _colours(count: int, scores: Float[ndarray, " n"] | None) -> list[Colour]:
    if scores is None:
        return [_viridis(1.0)] * count
    low, high = (scores.min(), scores.max()) if count else (0.0, 1.0)
    return [_viridis((score - low) / (high - low) if high > low else 1.0) for score in scores]


def _viridis(share: float) -> Colour:
    place = np.linspace(0, 1, len(VIRIDIS))
    red, green, blue = (round(float(np.interp(share, place, channel))) for channel in VIRIDIS.T)
    return red, green, blue


def _draw_solid(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, pen: Pen) -> None:
    draw.rectangle(_grown(box, pen.edge), outline=DARK, width=pen.line + 2 * pen.edge)
    draw.rectangle(box, outline=colour, width=pen.line)


def _draw_dashed(draw: ImageDraw.ImageDraw, box: Rectangle, pen: Pen) -> None:
    left, top, right, bottom = box
    dash = 4 * pen.line
    bars = [
        (x, y, min(x + dash, right), y + pen.line - 1)
        for y in (top, bottom - pen.line + 1)
        for x in range(left, right + 1, 2 * dash)
    ]
    bars += [
        (x, y, x + pen.line - 1, min(y + dash, bottom))
        for x in (left, right - pen.line + 1)
        for y in range(top, bottom + 1, 2 * dash)
    ]
    for bar in bars:
        draw.rectangle(_grown(bar, pen.edge), fill=DARK)
    for bar in bars:
        draw.rectangle(bar, fill=LIGHT)


def _grown(box: Rectangle, by: int) -> Rectangle:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _text_size(text: str, pen: Pen) -> tuple[int, int]:
    """Width and height of a text with a margin around it; the same height for every text."""
    _, top, _, bottom = pen.font.getbbox("0123456789")
    margin = max(2, pen.gap // 2)
    return (
        math.ceil(pen.font.getlength(text)) + 2 * margin,
        math.ceil(bottom - top) + 2 * margin,
    )


def _free_spot(
    box: Rectangle,
    size: tuple[int, int],
    taken: list[Rectangle],
    canvas: tuple[int, int],
    pen: Pen,
) -> Rectangle | None:
    """Where a label goes: outside the box if possible, over no other label, or nowhere."""
    left, top, right, bottom = box
    width, height = size
    above, below = top - pen.edge - height, bottom + pen.edge + 1
    candidates = (
        (left, above),
        (right - width + 1, above),
        (left, below),
        (right - width + 1, below),
        (left + pen.line, top + pen.line),
    )
    for x, y in candidates:
        spot = (x, y, x + width - 1, y + height - 1)
        inside = x >= 0 and y >= 0 and spot[2] < canvas[0] and spot[3] < canvas[1]
        if inside and not any(_overlap(spot, other) for other in taken):
            return spot
    return None


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _draw_label(
    draw: ImageDraw.ImageDraw, spot: Rectangle, text: str, colour: Colour, pen: Pen
) -> None:
    draw.rectangle(_grown(spot, pen.edge), fill=DARK)
    draw.rectangle(spot, fill=colour)
    middle = ((spot[0] + spot[2]) / 2, (spot[1] + spot[3]) / 2)
    draw.text(middle, text, fill=_readable_on(colour), font=pen.font, anchor="mm")


def _readable_on(colour: Colour) -> Colour:
    luma = np.dot(colour, (0.299, 0.587, 0.114))
    return DARK if luma > 110 else LIGHT


def _with_legend(
    canvas: Image.Image,
    scores: Float[ndarray, " n"] | None,
    count: int,
    ground_truth_xyxy: Float[ndarray, "G 4"] | None,
    pen: Pen,
) -> Image.Image:
    """The canvas with rows below it: proposals with their colours, and ground truth."""
    items = [_proposals_legend(scores, count, pen)]
    if ground_truth_xyxy is not None:
        items.append(_ground_truth_legend(len(ground_truth_xyxy), pen))
    rows: list[list[Image.Image]] = [[]]
    for item in items:
        if rows[-1] and sum(other.width for other in [*rows[-1], item]) > canvas.width:
            rows.append([])
        rows[-1].append(item)
    height = sum(row[0].height for row in rows)
    width = max(canvas.width, *(item.width for item in items))
    whole = Image.new("RGB", (width, canvas.height + height), DARK)
    whole.paste(canvas, ((width - canvas.width) // 2, 0))
    y = canvas.height
    for row in rows:
        x = 0
        for item in row:
            whole.paste(item, (x, y))
            x += item.width
        y += row[0].height
    return whole


def _proposals_legend(scores: Float[ndarray, " n"] | None, count: int, pen: Pen) -> Image.Image:
    text = f"{count} proposal{'' if count == 1 else 's'}"
    if scores is None or not count:
        item, box = _legend_item(text, "", pen)
        _draw_solid(ImageDraw.Draw(item), _grown(box, -pen.edge), _viridis(1.0), pen)
        return item
    low, high = f"{scores.min():.2f}", f"{scores.max():.2f}"
    item, (left, top, right, bottom) = _legend_item(f"{text}, score {low}", high, pen)
    draw = ImageDraw.Draw(item)
    for x in range(left, right + 1):
        draw.line((x, top, x, bottom), fill=_viridis((x - left) / (right - left)))
    return item


def _ground_truth_legend(count: int, pen: Pen) -> Image.Image:
    item, box = _legend_item(f"{count} ground truth", "", pen)
    left, top, right, bottom = box
    middle = (top + bottom) // 2
    _draw_dashed(ImageDraw.Draw(item), (left, middle, right, middle + pen.line - 1), pen)
    return item


def _legend_item(before: str, after: str, pen: Pen) -> tuple[Image.Image, Rectangle]:
    """An entry with its text, and the place of its sample in it."""
    before_width, height = _text_size(before, pen)
    after_width = _text_size(after, pen)[0] if after else 0
    sample_width = 4 * height
    gap = pen.gap
    left = gap + before_width + gap
    item = Image.new(
        "RGB", (left + sample_width + gap + after_width + 2 * gap, height + 2 * gap), DARK
    )
    draw = ImageDraw.Draw(item)
    middle = item.height / 2
    draw.text((gap, middle), before, fill=LIGHT, font=pen.font, anchor="lm")
    draw.text((left + sample_width + gap, middle), after, fill=LIGHT, font=pen.font, anchor="lm")
    return item, (left, gap, left + sample_width - 1, gap + height - 1)
