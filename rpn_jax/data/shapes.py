"""The built-in dataset: overlapping figures over a busy background, drawn by code.

Every picture is a pure function of its split and its position. `plan_scene` decides the figures
and their boxes. `draw_scene` draws the pixels on request. The contrast between a figure and what
lies under it is random. Lines and specks of the background are not objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from rpn_jax.data.dataset import Objects, Picture
from rpn_jax.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, UInt8

SPLIT_SIZES = {"train": 896, "eval": 64}
"""Number of pictures of each split."""
SPLIT_SEEDS = {"train": 1, "eval": 2}
"""Part of each picture's seed that depends on the split."""
SEED = 20150604
"""Part of each picture's seed that is the same for all."""
LANDSCAPE = (240, 320)
"""(height, width) in pixels of most pictures."""
PORTRAIT = (320, 240)
"""(height, width) in pixels of the others."""
PORTRAIT_SHARE = 0.25
"""Probability that a picture is a portrait."""
FIGURES = (3, 9)
"""Number of figures tried in a picture: from the first number, below the second."""
FIGURE_SIZES = (48.0, 180.0)
"""Smallest and largest diameter, pixels. Logarithms of diameters are uniform."""
CONTRASTS = (60.0, 130.0)
"""Lowest and highest contrast of a figure, grey levels. Logarithms are uniform."""
MIN_VISIBLE = 0.7
"""Smallest visible share of a figure. Figures that are hidden more are left out."""
MIN_SIDE = 12
"""Smallest side of a figure's box, pixels. Smaller figures are left out."""
SPECKS = (15, 60)
"""Number of specks on a background, like `FIGURES`. Each is 2 to 6 pixels wide."""
LINES = (2, 8)
"""Number of lines on a background, like `FIGURES`."""


def _regular(corners: int, radii: Sequence[float] = (1.0,)) -> Float32[np.ndarray, "P 2"]:
    """Return corners at equal angles. Their distances from the centre repeat ``radii``."""
    angles = np.arange(corners) * (2 * np.pi / corners)
    radius = np.resize(radii, corners)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1).astype(np.float32)


def _points(*points: tuple[float, float]) -> Float32[np.ndarray, "P 2"]:
    return np.array(points, np.float32)


OUTLINES: dict[str, tuple[Float32[np.ndarray, "P 2"], ...]] = {
    "disc": (_regular(64),),
    "ellipse": (_regular(64) * _points((1.0, 0.6)),),
    "ring": (_regular(64), _regular(64) * 0.6),
    "triangle": (_regular(3),),
    "square": (_regular(4),),
    "bar": (_points((-0.9, -0.42), (0.9, -0.42), (0.9, 0.42), (-0.9, 0.42)),),
    "hexagon": (_regular(6),),
    "star": (_regular(10, (1.0, 0.42)),),
    "cross": (
        _points(
            *((-1.0, -0.3), (-0.3, -0.3), (-0.3, -1.0), (0.3, -1.0), (0.3, -0.3), (1.0, -0.3)),
            *((1.0, 0.3), (0.3, 0.3), (0.3, 1.0), (-0.3, 1.0), (-0.3, 0.3), (-1.0, 0.3)),
        ),
    ),
}
"""The kinds of figures, as outlines within the unit circle. A second outline is a hole."""
KINDS = tuple(OUTLINES)


@dataclass(frozen=True, eq=False)
class Figure:
    """One figure of a scene."""

    kind: str
    outlines: tuple[Float32[np.ndarray, "_ 2"], ...]
    """(x, y) in pixels. May reach out of the picture."""
    colour: Float32[np.ndarray, " 3"]
    """RGB difference between the figure and what lies under it, grey levels."""
    shade: Float32[np.ndarray, " 2"]
    """Relative change of ``colour`` from the box's centre to its edges, along x and y."""
    box_xyxy: tuple[int, int, int, int]
    """Tight box of the part inside the picture, hidden parts included, pixels."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture before it is drawn: figures from back to front."""

    height: int
    width: int
    figures: tuple[Figure, ...]
    background_seed: tuple[int, ...]


class Shapes:
    """A split of the built-in dataset, 'train' or 'eval' (a `Dataset`).

    Raises:
      UserError: there is no such split.
    """

    def __init__(self, split: str) -> None:
        if split not in SPLIT_SIZES:
            raise UserError(f"split '{split}': the built-in shapes have {', '.join(SPLIT_SIZES)}")
        self._scenes = [plan_scene(split, index) for index in range(SPLIT_SIZES[split])]
        counts = [len(scene.figures) for scene in self._scenes]
        first_ids = np.cumsum([1, *counts[:-1]]).tolist()
        self.class_names = KINDS
        self.category_ids = tuple(range(1, len(KINDS) + 1))
        self.pictures: Sequence[Picture] = [
            Picture(
                image_id=index + 1,
                name=f"shapes_{split}_{index:04d}",
                height=scene.height,
                width=scene.width,
                objects=_objects_of(scene, first_id),
            )
            for index, (scene, first_id) in enumerate(zip(self._scenes, first_ids, strict=True))
        ]

    def load_image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Draw a picture. Returns RGB pixels."""
        return draw_scene(self._scenes[index])


def plan_scene(split: str, index: int) -> Scene:
    """Decide the figures of picture ``index`` of a split."""
    seed = (SEED, SPLIT_SEEDS[split], index)
    rng = np.random.default_rng(seed)
    height, width = PORTRAIT if rng.random() < PORTRAIT_SHARE else LANDSCAPE
    figures = [_plan_figure(rng, height, width) for _ in range(rng.integers(*FIGURES))]
    large = [figure for figure in figures if _shorter_side(figure.box_xyxy) >= MIN_SIDE]
    visible = _visible_shares(large, height, width)
    kept = [figure for figure, share in zip(large, visible, strict=True) if share >= MIN_VISIBLE]
    return Scene(height, width, tuple(kept), background_seed=(*seed, 1))


def draw_scene(scene: Scene) -> UInt8[np.ndarray, "H W 3"]:
    """Draw a scene's background and its figures, back to front. RGB."""
    rng = np.random.default_rng(scene.background_seed)
    canvas = _draw_background(rng, scene.height, scene.width)
    for figure in scene.figures:
        _draw_figure(canvas, figure)
    grain = rng.integers(-7, 8, canvas.shape, dtype=np.int8)
    return np.clip(canvas + grain, 0, 255).astype(np.uint8)


def _plan_figure(rng: np.random.Generator, height: int, width: int) -> Figure:
    kind = KINDS[rng.integers(len(KINDS))]
    radius = np.exp(rng.uniform(*np.log(FIGURE_SIZES))) / 2
    angle = rng.uniform(0, 2 * np.pi)
    # The centre lies in the picture, so at most about half of a figure lies outside.
    centre = rng.uniform((0.05 * width, 0.05 * height), (0.95 * width, 0.95 * height))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    outlines = tuple(
        ((outline * radius) @ turn + centre).astype(np.float32) for outline in OUTLINES[kind]
    )
    direction = rng.standard_normal(3)
    contrast = np.exp(rng.uniform(*np.log(CONTRASTS)))
    return Figure(
        kind=kind,
        outlines=outlines,
        colour=(contrast * direction / np.abs(direction).max()).astype(np.float32),
        shade=rng.uniform(-0.4, 0.4, 2).astype(np.float32),
        box_xyxy=_box_of_mask(_mask(outlines, height, width)),
    )


def _visible_shares(figures: Sequence[Figure], height: int, width: int) -> list[float]:
    """Return for each figure the share of its pixels that no later figure hides."""
    masks = [_mask(figure.outlines, height, width) > 0 for figure in figures]
    hidden = np.zeros((height, width), bool)
    shares = []
    for mask in reversed(masks):
        shares.append(float((mask & ~hidden).sum() / mask.sum()))
        hidden |= mask
    return shares[::-1]


def _mask(
    outlines: Sequence[Float[np.ndarray, "_ 2"]], height: int, width: int
) -> UInt8[np.ndarray, "H W"]:
    """Return a mask: 255 inside the outlines, 0 outside, values between at smooth edges."""
    subpixel_bits = 4
    corners = [np.round(outline * 2**subpixel_bits).astype(np.int32) for outline in outlines]
    mask = np.zeros((height, width), np.uint8)
    return cv2.fillPoly(mask, corners, 255, cv2.LINE_AA, subpixel_bits)


def _box_of_mask(mask: UInt8[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    x, y, width, height = cv2.boundingRect((mask >= 128).astype(np.uint8))
    return x, y, x + width, y + height


def _shorter_side(box_xyxy: tuple[int, int, int, int]) -> int:
    x1, y1, x2, y2 = box_xyxy
    return min(x2 - x1, y2 - y1)


def _draw_background(
    rng: np.random.Generator, height: int, width: int
) -> Float32[np.ndarray, "H W 3"]:
    """Draw coarse and fine clouds, mostly grey, then lines and specks of any colour."""
    base = rng.uniform(70, 185, 3)
    canvas = np.full((height, width, 3), base, np.float32)
    for cells, strength in ((2, 45.0), (6, 25.0), (24, 12.0)):
        clouds = rng.normal(0, strength, (cells, cells, 1)) + rng.normal(
            0, 0.4 * strength, (cells, cells, 3)
        )
        canvas += cv2.resize(
            clouds.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
    for _ in range(rng.integers(*LINES)):
        ends = rng.integers(-40, 360, 4).tolist()
        colour = (base + rng.normal(0, 45, 3)).tolist()
        cv2.line(canvas, ends[:2], ends[2:], colour, int(rng.integers(1, 4)), cv2.LINE_AA)
    for _ in range(rng.integers(*SPECKS)):
        centre = rng.integers(0, (width, height)).tolist()
        colour = (base + rng.normal(0, 60, 3)).tolist()
        cv2.circle(canvas, centre, int(rng.integers(1, 4)), colour, cv2.FILLED, cv2.LINE_AA)
    return np.clip(canvas, 0, 255)


def _draw_figure(canvas: Float32[np.ndarray, "H W 3"], figure: Figure) -> None:
    """Paint a figure over the mean colour of what lies under it, in place."""
    x1, y1, x2, y2 = figure.box_xyxy
    part = canvas[y1:y2, x1:x2]
    outlines = [outline - (x1, y1) for outline in figure.outlines]
    mask = _mask(outlines, y2 - y1, x2 - x1)
    under = np.array(cv2.mean(part, mask)[:3], np.float32)
    # Flip the sign of the difference in channels where the colour would leave 0 to 255.
    inside = (under + figure.colour >= 0) & (under + figure.colour <= 255)
    difference = np.where(inside, figure.colour, -figure.colour)
    across = figure.shade[0] * np.linspace(-1, 1, x2 - x1, dtype=np.float32)[None, :, None]
    down = figure.shade[1] * np.linspace(-1, 1, y2 - y1, dtype=np.float32)[:, None, None]
    paint = under + (1 + across + down) * difference
    part += mask[..., None] * np.float32(1 / 255) * (paint - part)


def _objects_of(scene: Scene, first_id: int) -> Objects:
    boxes_xyxy = np.array([figure.box_xyxy for figure in scene.figures], np.float64).reshape(-1, 4)
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    labels = [KINDS.index(figure.kind) for figure in scene.figures]
    return Objects(
        boxes_xywh=np.concatenate([boxes_xyxy[:, :2], sides], axis=1),
        labels=np.array(labels, np.int32),
        is_crowd=np.zeros(len(labels), bool),
        is_difficult=np.zeros(len(labels), bool),
        areas=sides.prod(axis=1),
        ids=first_id + np.arange(len(labels)),
    )
