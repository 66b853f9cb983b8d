"""Draw proposals, detections and ground truth on pictures.

Proposals are coloured along viridis, from blue (lowest score drawn) to yellow (highest), which can
be distinguished with any colour vision. Detections have a colour for each class, and the name of
the class beside them. Ground truth is dashed. Every line and text has a dark edge, so that it is
visible on any background.
"""

from __future__ import annotations

import colorsys
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rpn_jax.errors import UserError, writing
from rpn_jax.inference.results import PictureDetections, best_first

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8
    from numpy import ndarray

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

MIN_LONG_SIDE = 960
"""Smaller pictures are enlarged to this many pixels, so that labels can be read."""
VIRIDIS = np.array(
    [(59, 82, 139), (44, 114, 142), (33, 145, 140), (94, 201, 98), (170, 220, 50), (253, 231, 37)]
)
CLASS_COLOURS: tuple[Colour, ...] = (
    (255, 225, 25),
    (86, 180, 233),
    (245, 130, 48),
    (60, 200, 100),
    (250, 130, 190),
    (66, 230, 240),
    (190, 240, 70),
    (200, 160, 255),
    (255, 120, 110),
    (70, 190, 170),
    (255, 215, 180),
    (140, 170, 255),
)
"""Colours of the first classes. All are bright, so that dark text is readable on them."""
GOLDEN_RATIO = 0.618034
"""Step of the hue from one further class to the next, which spreads the hues evenly."""
DARK: Colour = (20, 20, 24)
LIGHT: Colour = (255, 255, 255)


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
class _Mark:
    """A box to draw on the canvas."""

    box: Rectangle
    colour: Colour
    label: str
    """Text beside the box, or ''."""


def draw_boxes(
    image: UInt8[ndarray, "H W 3"],
    boxes_xyxy: Float[ndarray, "n 4"],
    scores: Float[ndarray, " n"] | None = None,
    ground_truth_xyxy: Float[ndarray, "G 4"] | None = None,
) -> UInt8[ndarray, "height width 3"]:
    """Draw proposals, and ground truth if given, on a picture, with a legend below it.

    The score of a box is written beside it where there is room. The best boxes come first.

    Args:
      image: RGB, of any size. A picture smaller than `MIN_LONG_SIDE` is enlarged.
      boxes_xyxy: pixels of ``image``.
      scores: written beside the boxes and shown by their colours. None draws all boxes alike.
      ground_truth_xyxy: pixels of ``image``.

    Returns:
      RGB, the enlarged picture with the rows of the legend below it.
    """
    canvas, scale = _enlarge(image)
    pen = Pen.for_size(*canvas.size)
    count = len(boxes_xyxy)
    labels = [""] * count if scores is None else [f"{score:.2f}" for score in scores]
    colours = _score_colours(count, scores)
    order = np.arange(count) if scores is None else best_first(scores)
    marks = [
        _Mark(_rectangle(boxes_xyxy[index], scale, canvas.size), colours[index], labels[index])
        for index in order
    ]
    legend = [_proposals_legend(scores, count, pen)]
    truth = []
    if ground_truth_xyxy is not None:
        truth = [_Mark(_rectangle(box, scale, canvas.size), LIGHT, "") for box in ground_truth_xyxy]
        legend.append(_ground_truth_legend(len(truth), pen))
    _draw_marks(canvas, marks, truth, pen)
    return np.asarray(_with_legend(canvas, legend))


def draw_detections(
    image: UInt8[ndarray, "H W 3"],
    detections: PictureDetections,
    class_names: Sequence[str],
    ground_truth: tuple[Float[ndarray, "G 4"], Int[ndarray, " G"]] | None = None,
) -> UInt8[ndarray, "height width 3"]:
    """Draw named boxes, and ground truth if given, on a picture, with a legend below it.

    The class and the score of a box are written beside it where there is room. The best boxes come
    first. The legend lists the classes in the picture with their numbers of boxes.

    Args:
      image: RGB, of any size. A picture smaller than `MIN_LONG_SIDE` is enlarged.
      detections: boxes in pixels of ``image``.
      class_names: name of each class.
      ground_truth: boxes xyxy in pixels of ``image``, and their labels. They are dashed, in the
        colours of their classes.

    Returns:
      RGB, the enlarged picture with the rows of the legend below it.
    """
    canvas, scale = _enlarge(image)
    pen = Pen.for_size(*canvas.size)
    marks = [
        _Mark(
            _rectangle(detections.boxes_xyxy[index], scale, canvas.size),
            class_colour(label),
            _fit(class_names[label], f" {detections.scores[index]:.2f}", canvas.width, pen),
        )
        for index in best_first(detections.scores)
        for label in [int(detections.labels[index])]
    ]
    counts = Counter(detections.labels.tolist())
    truth = []
    if ground_truth is not None:
        truth = [
            _Mark(_rectangle(box, scale, canvas.size), class_colour(int(label)), "")
            for box, label in zip(*ground_truth, strict=True)
        ]
        counts.update({int(label): 0 for label in ground_truth[1]})
    legend = [
        _class_legend(f"{counts[label]} {class_names[label]}", label, canvas.width // 2, pen)
        for label in sorted(counts)
    ]
    if ground_truth is not None:
        legend.append(_ground_truth_legend(len(truth), pen))
    if not legend:
        legend.append(_legend_item("0 detections", "", pen)[0])
    _draw_marks(canvas, marks, truth, pen)
    return np.asarray(_with_legend(canvas, legend))


def class_colour(label: int) -> Colour:
    """Return the colour of a class. It is the same in every picture."""
    if label < len(CLASS_COLOURS):
        return CLASS_COLOURS[label]
    saturation = (0.4, 0.7)[label % 2]
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN_RATIO % 1, saturation, 1)
    return round(255 * red), round(255 * green), round(255 * blue)


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


def _enlarge(image: UInt8[ndarray, "H W 3"]) -> tuple[Image.Image, float]:
    """Return the picture with a long side of at least `MIN_LONG_SIDE`, and the factor."""
    scale = max(1.0, MIN_LONG_SIDE / max(image.shape[:2]))
    canvas = Image.fromarray(image)
    if scale > 1:
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        canvas = canvas.resize(size, Image.Resampling.BICUBIC)
    return canvas, scale


def _rectangle(box: Any, scale: float, size: tuple[int, int]) -> Rectangle:
    """Return a box in whole pixels of the canvas, with both corners inside it."""
    width, height = size
    left, top, right, bottom = (round(float(value) * scale) for value in box)
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return left, top, min(max(right - 1, left), width - 1), min(max(bottom - 1, top), height - 1)


def _score_colours(count: int, scores: Float[ndarray, " n"] | None) -> list[Colour]:
    if scores is None:
        return [_viridis(1.0)] * count
    low, high = (scores.min(), scores.max()) if count else (0.0, 1.0)
    return [_viridis((score - low) / (high - low) if high > low else 1.0) for score in scores]


def _viridis(share: float) -> Colour:
    place = np.linspace(0, 1, len(VIRIDIS))
    red, green, blue = (round(float(np.interp(share, place, channel))) for channel in VIRIDIS.T)
    return red, green, blue


def _draw_marks(
    canvas: Image.Image, marks: Sequence[_Mark], truth: Sequence[_Mark], pen: Pen
) -> None:
    """Draw boxes, solid if found and dashed if true, and the labels that have room.

    Args:
      canvas: picture to draw on.
      marks: boxes that were found, best first.
      truth: ground truth.
      pen: sizes.
    """
    draw = ImageDraw.Draw(canvas)
    for mark in reversed(marks):
        _draw_solid(draw, mark.box, mark.colour, pen)
    for mark in truth:
        _draw_dashed(draw, mark.box, mark.colour, pen)
    taken: list[Rectangle] = []
    for mark in marks:
        if mark.label:
            spot = _free_spot(mark.box, _text_size(mark.label, pen), taken, canvas.size, pen)
            if spot is not None:
                taken.append(spot)
                _draw_label(draw, spot, mark.label, mark.colour, pen)


def _draw_solid(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, pen: Pen) -> None:
    draw.rectangle(_grown(box, pen.edge), outline=DARK, width=pen.line + 2 * pen.edge)
    draw.rectangle(box, outline=colour, width=pen.line)


def _draw_dashed(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, pen: Pen) -> None:
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
        draw.rectangle(bar, fill=colour)


def _grown(box: Rectangle, by: int) -> Rectangle:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _text_size(text: str, pen: Pen) -> tuple[int, int]:
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
    draw.rectangle(_grown(spot, pen.edge), fill=DARK)
    draw.rectangle(spot, fill=colour)
    middle = ((spot[0] + spot[2]) / 2, (spot[1] + spot[3]) / 2)
    draw.text(middle, text, fill=_readable_on(colour), font=pen.font, anchor="mm")


def _readable_on(colour: Colour) -> Colour:
    """Return the colour of text with the higher contrast to a background."""
    background = _luminance(colour) + 0.05
    is_bright = background / (_luminance(DARK) + 0.05) > (_luminance(LIGHT) + 0.05) / background
    return DARK if is_bright else LIGHT


def _luminance(colour: Colour) -> float:
    """Return the relative luminance of WCAG 2. The contrast of two is their ratio, each + 0.05."""
    shares = np.array(colour) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def _fit(name: str, value: str, width: int, pen: Pen) -> str:
    """Return a name with its value. The name is shortened until both fit into the width."""
    text = name + value
    while len(name) > 1 and _text_size(text, pen)[0] > width:
        name = name[:-1]
        text = f"{name}...{value}"
    return text


def _with_legend(canvas: Image.Image, items: Sequence[Image.Image]) -> Image.Image:
    """Return the canvas with the items in rows below it."""
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


def _class_legend(text: str, label: int, width: int, pen: Pen) -> Image.Image:
    item, box = _legend_item(_fit(text, "", width, pen), "", pen)
    _draw_solid(ImageDraw.Draw(item), _grown(box, -pen.edge), class_colour(label), pen)
    return item


def _ground_truth_legend(count: int, pen: Pen) -> Image.Image:
    item, box = _legend_item(f"{count} ground truth", "", pen)
    left, top, right, bottom = box
    middle = (top + bottom) // 2
    _draw_dashed(ImageDraw.Draw(item), (left, middle, right, middle + pen.line - 1), LIGHT, pen)
    return item


def _legend_item(before: str, after: str, pen: Pen) -> tuple[Image.Image, Rectangle]:
    """Return an entry with its text, and the place of its sample in it."""
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
