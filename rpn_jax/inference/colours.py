"""Colours of boxes: by score, by class, and of text on them."""

from __future__ import annotations

import colorsys

import numpy as np

Colour = tuple[int, int, int]

VIRIDIS = np.array(
    [(59, 82, 139), (44, 114, 142), (33, 145, 140), (94, 201, 98), (170, 220, 50), (253, 231, 37)]
)
"""Can be distinguished with any colour vision."""
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


def class_colour(label: int) -> Colour:
    """Return the colour of a class. It is the same in every picture."""
    if label < len(CLASS_COLOURS):
        return CLASS_COLOURS[label]
    saturation = (0.4, 0.7)[label % 2]
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN_RATIO % 1, saturation, 1)
    return round(255 * red), round(255 * green), round(255 * blue)


def viridis(share: float) -> Colour:
    """Return the colour of a share from 0 (blue) to 1 (yellow)."""
    place = np.linspace(0, 1, len(VIRIDIS))
    red, green, blue = (round(float(np.interp(share, place, channel))) for channel in VIRIDIS.T)
    return red, green, blue


def readable_on(colour: Colour) -> Colour:
    """Return the colour of text with the higher contrast to a background."""
    background = _luminance(colour) + 0.05
    is_bright = background / (_luminance(DARK) + 0.05) > (_luminance(LIGHT) + 0.05) / background
    return DARK if is_bright else LIGHT


def _luminance(colour: Colour) -> float:
    """Return the relative luminance of WCAG 2. The contrast of two is their ratio, each + 0.05."""
    shares = np.array(colour) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))
