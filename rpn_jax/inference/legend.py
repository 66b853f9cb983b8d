"""The legend below a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from rpn_jax.inference.colours import DARK, LIGHT, class_colour, viridis
from rpn_jax.inference.marks import Pen, Rectangle, draw_dashed, draw_solid, fit, grown, text_size

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray


def with_legend(canvas: Image.Image, items: Sequence[Image.Image]) -> Image.Image:
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


def proposals_legend(scores: Float[ndarray, " n"] | None, count: int, pen: Pen) -> Image.Image:
    """Return the entry with the number of proposals and the colours of their scores."""
    text = f"{count} proposal{'' if count == 1 else 's'}"
    if scores is None or not count:
        item, box = legend_item(text, "", pen)
        draw_solid(ImageDraw.Draw(item), grown(box, -pen.edge), viridis(1.0), pen)
        return item
    low, high = f"{scores.min():.2f}", f"{scores.max():.2f}"
    item, (left, top, right, bottom) = legend_item(f"{text}, score {low}", high, pen)
    draw = ImageDraw.Draw(item)
    for x in range(left, right + 1):
        draw.line((x, top, x, bottom), fill=viridis((x - left) / (right - left)))
    return item


def class_legend(text: str, label: int, width: int, pen: Pen) -> Image.Image:
    """Return the entry of a class with its colour, at most ``width`` pixels of text."""
    item, box = legend_item(fit(text, "", width, pen), "", pen)
    draw_solid(ImageDraw.Draw(item), grown(box, -pen.edge), class_colour(label), pen)
    return item


def ground_truth_legend(count: int, pen: Pen) -> Image.Image:
    """Return the entry of the dashed boxes."""
    item, box = legend_item(f"{count} ground truth", "", pen)
    left, top, right, bottom = box
    middle = (top + bottom) // 2
    draw_dashed(ImageDraw.Draw(item), (left, middle, right, middle + pen.line - 1), LIGHT, pen)
    return item


def legend_item(before: str, after: str, pen: Pen) -> tuple[Image.Image, Rectangle]:
    """Return an entry with its text, and the place of its sample in it."""
    before_width, height = text_size(before, pen)
    after_width = text_size(after, pen)[0] if after else 0
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
