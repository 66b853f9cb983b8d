"""Drawn pictures are readable at any size and leave the objects visible."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rpn_jax.errors import UserError
from rpn_jax.inference import draw as visualize
from rpn_jax.inference.draw import DARK, LIGHT, VIRIDIS, draw_boxes, save_picture

BEST = tuple(VIRIDIS[-1])
GREY = 128


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def boxes(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def pixels_of(image: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    return (image == np.array(colour)).all(axis=-1)


@pytest.mark.parametrize(
    ("height", "width"), [(48, 64), (480, 640), (1000, 1000), (3000, 4000), (900, 9), (40, 2000)]
)
def test_any_size_is_drawn_readably(height: int, width: int) -> None:
    box = boxes((0.2 * width, 0.3 * height, 0.8 * width, 0.9 * height))
    corner = boxes((0, 0, 0.05 * width, 0.05 * height))
    drawn = draw_boxes(grey(height, width), box, np.array([0.9]), corner)
    scale = max(1, 960 / max(height, width))
    rows, columns = round(height * scale), round(width * scale)
    assert drawn.dtype == np.uint8
    assert drawn.shape[1] >= columns
    legend = drawn[rows:]
    assert 20 <= len(legend) <= max(100, 0.06 * rows)
    assert pixels_of(legend, LIGHT).sum() > 100, "the legend has its text"
    picture = drawn[:rows]
    across = pixels_of(picture[round(0.6 * rows)], BEST).sum()
    assert across >= 2, "the box's sides are there"
    assert across <= max(12, 0.01 * columns), "and thin"


def test_a_large_picture_keeps_its_pixels_and_the_objects_their_view() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3)).astype(np.uint8)
    before = image.copy()
    box = boxes((400, 300, 900, 800))
    drawn = draw_boxes(image, box, np.array([0.5]), box + 3)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(drawn[320:780, 420:880], image[320:780, 420:880])
    np.testing.assert_array_equal(drawn[:270], image[:270])
    assert (drawn[270:299, 400:440] != image[270:299, 400:440]).any(), "the score is above it"


def test_a_box_is_drawn_at_its_place_in_an_enlarged_picture() -> None:
    drawn = draw_boxes(grey(480, 640), boxes((100, 200, 300, 400)))
    row, column = 450, 300  # 1.5 times (y=300, x=200)
    (sides,) = np.nonzero(pixels_of(drawn[row], BEST))
    (edges,) = np.nonzero(pixels_of(drawn[:720, column], BEST))
    assert (sides.min(), sides.max(), edges.min(), edges.max()) == (150, 449, 300, 599)


def test_ground_truth_is_dashed_and_only_drawn_where_given() -> None:
    image, box = grey(1000, 1000), boxes((200, 200, 800, 800))
    without = draw_boxes(image, boxes())
    assert not pixels_of(without[:1000], LIGHT).any()
    drawn = draw_boxes(image, boxes(), None, box)
    for line in (
        drawn[200, 200:800],
        drawn[799, 200:800],
        drawn[200:800, 200],
        drawn[200:800, 799],
    ):
        light = pixels_of(line, LIGHT)
        assert 0.3 < light.mean() < 0.7
        assert np.count_nonzero(np.diff(light.astype(int)) == 1) > 10, "in many dashes"
    assert (drawn[300:700, 300:700] == GREY).all()


def test_the_best_score_lies_on_top_and_has_the_brightest_colour() -> None:
    image, box = grey(1000, 1000), boxes(*[(200, 200, 800, 800)] * 3, (50, 50, 150, 150))
    for scores in ([0.3, 0.9, 0.6, 0.1], [0.9, 0.6, 0.3, 0.1], [0.3, 0.6, 0.9, 0.1]):
        drawn = draw_boxes(image, box, np.array(scores))
        assert pixels_of(drawn[500], BEST).any()
        assert pixels_of(drawn[100], tuple(VIRIDIS[0])).any()


def test_equal_scores_and_boxes_beyond_the_picture_are_drawn() -> None:
    rows = boxes((-50, -50, 30, 30), (90, 90, 500, 500), (40, 40, 40, 40), (200, 200, 300, 300))
    drawn = draw_boxes(grey(100, 100), rows, np.full(4, 0.5), rows)
    assert pixels_of(drawn[:960], BEST).any()


@pytest.mark.parametrize("count", [0, 1, 40, 300])
def test_labels_lie_in_the_picture_and_over_no_other(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spots: list[Any] = []
    texts: list[str] = []

    def remember(draw: Any, spot: Any, text: str, colour: Any, pen: Any) -> None:
        spots.append(spot)
        texts.append(text)

    monkeypatch.setattr(visualize, "_draw_label", remember)
    rng = np.random.default_rng(count)
    corners = rng.uniform(0, 900, (count, 2))
    rows = np.concatenate([corners, corners + rng.uniform(5, 300, (count, 2))], axis=1)
    scores = rng.uniform(0, 1, count)
    drawn = draw_boxes(grey(1000, 1200), rows, scores)
    for left, top, right, bottom in spots:
        assert 0 <= left < right < 1200
        assert 0 <= top < bottom < 1000
    for one, other in combinations(spots, 2):
        assert one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]
    assert len(spots) >= min(count, 40) * 0.9, "nearly all have room"
    assert texts[:1] == ([f"{scores.max():.2f}"] if count else []), "the best comes first"
    assert drawn.shape[1] == 1200


def test_labels_are_readable_on_every_colour() -> None:
    def luminance(colour: Any) -> float:
        """Relative luminance (WCAG 2)."""
        channels = np.array(colour) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ (0.2126, 0.7152, 0.0722))

    for share in np.linspace(0, 1, 50):
        colour = visualize._viridis(share)
        dark, light = sorted(map(luminance, (colour, visualize._readable_on(colour))))
        assert (light + 0.05) / (dark + 0.05) >= 4.0
    assert visualize._readable_on(LIGHT) == DARK


def read_picture(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_picture_survives_its_file(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    save_picture(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), image)
    save_picture(tmp_path / "a.jpg", image)
    assert read_picture(tmp_path / "a.jpg").shape == (20, 30, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.xyz", "'.xyz' is no picture format"), ("no/a.png", "cannot be written")],
)
def test_a_picture_that_cannot_be_written_is_told_in_one_line(
    tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        save_picture(tmp_path / name, grey(8, 8))
    assert "\n" not in str(error.value)
