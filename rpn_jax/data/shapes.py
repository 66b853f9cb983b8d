"""The built-in dataset: overlapping figures over a busy background, drawn by code.

Every picture is a pure function of its split and its position. `plan_scene` decides the figures
and so the boxes; `draw_scene` makes the pixels, when they are asked for. A figure differs from
what lies under it by a contrast of its own. Lines and specks of the background are not objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from rpn_jax.data.dataset import Picture, coco_images
from rpn_jax.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8

SPLIT_SIZES = {"train": 2048, "eval": 64}
"""Pictures of each split."""
SPLIT_SEEDS = {"train": 1, "eval": 2}
"""Part of the seed of each picture: no two splits share one."""
SEED = 20150604
"""The other part, fixed."""
LANDSCAPE = (240, 320)
"""(height, width) in pixels of most pictures."""
PORTRAIT = (320, 240)
"""(height, width) in pixels of the others."""
PORTRAIT_SHARE = 0.25
"""Probability of a portrait."""
FIGURES = (3, 9)
"""Figures put on a picture: at least, and below."""
FIGURE_SIZES = (48.0, 180.0)
"""Smallest and largest diameter, pixels; logarithms of diameters are uniform."""
CONTRASTS = (60.0, 130.0)
"""Lowest and highest difference in grey levels to what lies under a figure; as diameters."""
MIN_VISIBLE = 0.7
"""A figure of which less can be seen is not put there."""
MIN_SIDE = 12
"""A figure whose part in the picture is narrower or lower, pixels, is not put there."""
SPECKS = (15, 60)
"""Specks on a background: at least, and below; each is 2 to 6 pixels wide."""
LINES = (2, 8)
"""Lines on a background: at least, and below."""


def _regular(corners: int, radii: Sequence[float] = (1.0,)) -> Float32[np.ndarray, "P 2"]:
    """Corners at equal angles, their distances from the centre taken from ``radii`` in turn."""
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
            *((-1, -0.3), (-0.3, -0.3), (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3)),
            *((1, 0.3), (0.3, 0.3), (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3)),
        ),
    ),
}
"""The kinds of figures: outlines within the unit circle; a second one is a hole."""
KINDS = tuple(OUTLINES)


@dataclass(frozen=True, eq=False)
class Figure:
    """One figure of a scene."""

    kind: str
    outlines: tuple[Float32[np.ndarray, "P 2"], ...]
    """(x, y) in pixels; may reach out of the picture."""
    colour: Float32[np.ndarray, " 3"]
    """RGB difference to what lies under the figure, grey levels."""
    shade: Float32[np.ndarray, " 2"]
    """Change of that difference from the box's centre to its edges, along x and y."""
    box_xyxy: tuple[int, int, int, int]
    """Tight round the figure's part inside the picture, hidden or not, pixels."""


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
      UserError: another split.
    """

    def __init__(self, split: str) -> None:
        if split not in SPLIT_SIZES:
            raise UserError(f"split '{split}': the built-in shapes have {', '.join(SPLIT_SIZES)}")
        self._scenes = [plan_scene(split, index) for index in range(SPLIT_SIZES[split])]
        self.pictures: Sequence[Picture] = [
            Picture(
                image_id=index + 1,
                name=f"shapes_{split}_{index:04d}",
                height=scene.height,
                width=scene.width,
                boxes_xyxy=np.array([figure.box_xyxy for figure in scene.figures], np.float32),
            )
            for index, scene in enumerate(self._scenes)
        ]
        self.annotations = _coco_annotations(self.pictures, self._scenes)

    def load_image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """RGB pixels, drawn anew."""
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
    # The centre lies in the picture, so at most about half of a figure is cut away.
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
    """The share of each figure's pixels in the picture that no later figure hides."""
    masks = [_mask(figure.outlines, height, width) > 0 for figure in figures]
    hidden = np.zeros((height, width), bool)
    shares = []
    for mask in reversed(masks):
        shares.append(float((mask & ~hidden).sum() / mask.sum()))
        hidden |= mask
    return shares[::-1]


def _mask(
    outlines: Sequence[Float32[np.ndarray, "P 2"]], height: int, width: int
) -> UInt8[np.ndarray, "H W"]:
    """255 inside the outlines, 0 outside, between them at smoothed edges."""
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
    """Coarse and fine clouds, mostly grey, then lines and specks of any colour."""
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
    # Where the colour would leave the range of a channel, the difference goes the other way.
    inside = (under + figure.colour >= 0) & (under + figure.colour <= 255)
    difference = np.where(inside, figure.colour, -figure.colour)
    across = figure.shade[0] * np.linspace(-1, 1, x2 - x1, dtype=np.float32)[None, :, None]
    down = figure.shade[1] * np.linspace(-1, 1, y2 - y1, dtype=np.float32)[:, None, None]
    paint = under + (1 + across + down) * difference
    part += mask[..., None] * np.float32(1 / 255) * (paint - part)


def _coco_annotations(pictures: Sequence[Picture], scenes: Sequence[Scene]) -> dict[str, Any]:
    boxes = [
        (picture.image_id, figure)
        for picture, scene in zip(pictures, scenes, strict=True)
        for figure in scene.figures
    ]
    return {
        "images": coco_images(pictures),
        "annotations": [
            _coco_annotation(number, image_id, figure)
            for number, (image_id, figure) in enumerate(boxes, start=1)
        ],
        "categories": [
            {"id": number, "name": kind, "supercategory": "figure"}
            for number, kind in enumerate(KINDS, start=1)
        ],
    }


def _coco_annotation(number: int, image_id: int, figure: Figure) -> dict[str, Any]:
    x1, y1, x2, y2 = figure.box_xyxy
    return {
        "id": number,
        "image_id": image_id,
        "category_id": KINDS.index(figure.kind) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
    }
