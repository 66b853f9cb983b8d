"""Boxes with labels on a canvas. Every line and text has a dark edge, to be visible anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from rpn_jax.inference.colours import DARK, Colour, readable_on

Rectangle = tuple[int, int, int, int]
"""(left, top, right, bottom), whole pixels, all inside the rectangle."""


@dataclass(frozen=True)
class Pen:
    """Widths of lines and size of text that suit a canvas, pixels."""

    line: int
    edge: int
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    gap: int

    @classmethod
    def for_size(cls, width: int, height: int) -> Pen:
        """Return sizes that grow with the square root of the canvas's area."""
        unit = math.sqrt(width * height) / 800
        return cls(
            line=max(2, round(2.5 * unit)),
            edge=max(1, round(unit)),
            font=ImageFont.load_default(size=max(13, round(14 * unit))),
            gap=max(4, round(5 * unit)),
        )


@dataclass(frozen=True)
class Mark:
    """A box to draw on the canvas."""

    box: Rectangle
    colour: Colour
    label: str
    """Text beside the box, or ''."""


def draw_marks(canvas: Image.Image, marks: Sequence[Mark], truth: Sequence[Mark], pen: Pen) -> None:
    """Draw boxes, solid if found and dashed if true, and the labels that have room.

    Args:
      canvas: picture to draw on.
      marks: boxes that were found, best first.
      truth: ground truth.
      pen: sizes.
    """
    draw = ImageDraw.Draw(canvas)
    for mark in reversed(marks):
        draw_solid(draw, mark.box, mark.colour, pen)
    for mark in truth:
        draw_dashed(draw, mark.box, mark.colour, pen)
    taken: list[Rectangle] = []
    for mark in marks:
        if mark.label:
            spot = _free_spot(mark.box, text_size(mark.label, pen), taken, canvas.size, pen)
            if spot is not None:
                taken.append(spot)
                _draw_label(draw, spot, mark.label, mark.colour, pen)


def draw_solid(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, pen: Pen) -> None:
    """Draw a box that was found."""
    draw.rectangle(grown(box, pen.edge), outline=DARK, width=pen.line + 2 * pen.edge)
    draw.rectangle(box, outline=colour, width=pen.line)


def draw_dashed(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, pen: Pen) -> None:
    """Draw a box of the ground truth."""
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
        draw.rectangle(grown(bar, pen.edge), fill=DARK)
    for bar in bars:
        draw.rectangle(bar, fill=colour)


def grown(box: Rectangle, by: int) -> Rectangle:
    """Return a box with each side moved outwards by some pixels."""
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def text_size(text: str, pen: Pen) -> tuple[int, int]:
    """Return width and height of a text with a margin around it.

    All numbers have the same height, and all texts with letters.
    """
    has_letters = any(character.isalpha() for character in text)
    _, top, _, bottom = pen.font.getbbox("0gjy" if has_letters else "0123456789")
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
    """Return the place of a label: in the picture, over no other label, best outside the box.

    None if there is no such place.
    """
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
        x = max(0, min(x, canvas[0] - width))
        spot = (x, y, x + width - 1, y + height - 1)
        inside = y >= 0 and spot[2] < canvas[0] and spot[3] < canvas[1]
        if inside and not any(_overlap(spot, other) for other in taken):
            return spot
    return None


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _draw_label(
    draw: ImageDraw.ImageDraw, spot: Rectangle, text: str, colour: Colour, pen: Pen
) -> None:
    draw.rectangle(grown(spot, pen.edge), fill=DARK)
    draw.rectangle(spot, fill=colour)
    middle = ((spot[0] + spot[2]) / 2, (spot[1] + spot[3]) / 2)
    draw.text(middle, text, fill=readable_on(colour), font=pen.font, anchor="mm")


def fit(name: str, value: str, width: int, pen: Pen) -> str:
    """Return a name with its value. The name is shortened until both fit into the width."""
    text = name + value
    while len(name) > 1 and text_size(text, pen)[0] > width:
        name = name[:-1]
        text = f"{name}...{value}"
    return text
