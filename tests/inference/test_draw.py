"""Drawn pictures are readable at any size and leave the objects visible."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rpn_jax.errors import UserError
from rpn_jax.inference import marks
from rpn_jax.inference.colours import (
    CLASS_COLOURS,
    DARK,
    LIGHT,
    VIRIDIS,
    class_colour,
    readable_on,
    viridis,
)
from rpn_jax.inference.draw import draw_boxes, draw_detections, save_picture
from rpn_jax.inference.results import PictureDetections

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
    drawn_labels = record_labels(monkeypatch)
    rng = np.random.default_rng(count)
    corners = rng.uniform(0, 900, (count, 2))
    rows = np.concatenate([corners, corners + rng.uniform(5, 300, (count, 2))], axis=1)
    scores = rng.uniform(0, 1, count)
    drawn = draw_boxes(grey(1000, 1200), rows, scores)
    check_spots([spot for spot, _ in drawn_labels], 1200, 1000)
    assert len(drawn_labels) >= min(count, 40) * 0.9, "nearly all have room"
    texts = [text for _, text in drawn_labels]
    assert texts[:1] == ([f"{scores.max():.2f}"] if count else []), "the best comes first"
    assert drawn.shape[1] == 1200


def record_labels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, str]]:
    """Return a list that receives the place and the text of each label that is drawn."""
    labels: list[tuple[Any, str]] = []
    monkeypatch.setattr(
        marks,
        "_draw_label",
        lambda draw, spot, text, colour, pen: labels.append((spot, text)),
    )
    return labels


def check_spots(spots: list[Any], width: int, height: int) -> None:
    """Check that labels lie in the picture and over no other."""
    for left, top, right, bottom in spots:
        assert 0 <= left < right < width
        assert 0 <= top < bottom < height
    for one, other in combinations(spots, 2):
        assert one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]


def luminance(colour: Any) -> float:
    """Return the relative luminance of WCAG 2, from its definition."""
    channels = np.array(colour) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_labels_are_readable_on_every_colour() -> None:
    colours = [viridis(share) for share in np.linspace(0, 1, 50)]
    colours += [class_colour(label) for label in range(1300)]
    for colour in colours:
        dark, light = sorted(map(luminance, (colour, readable_on(colour))))
        assert (light + 0.05) / (dark + 0.05) >= 4.2
    assert readable_on(LIGHT) == DARK


def detections(rows: np.ndarray, labels: list[int], scores: list[float]) -> PictureDetections:
    return PictureDetections(1, rows, np.array(scores, np.float32), np.array(labels, np.int32))


def test_each_class_has_its_colour_and_its_name() -> None:
    assert len({class_colour(label) for label in range(80)}) == 80
    rows = boxes((100, 100, 400, 400), (500, 500, 900, 900), (600, 100, 900, 400))
    found = detections(rows, [0, 2, 2], [0.9, 0.5, 0.7])
    drawn = draw_detections(grey(1000, 1000), found, ["cat", "dog", "bird"])
    for left, top, right, bottom, label in ((100, 100, 400, 400, 0), (500, 500, 900, 900, 2)):
        colour = CLASS_COLOURS[label]
        assert pixels_of(drawn[top : top + 1, left:right], colour).mean() > 0.9
        assert pixels_of(drawn[top:bottom, left : left + 1], colour).mean() > 0.9
        assert (drawn[top + 50 : bottom - 50, left + 50 : right - 50] == GREY).all()
    assert not pixels_of(drawn, CLASS_COLOURS[1]).any(), "a class that is not there"


def test_labels_of_detections_name_the_class_and_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = record_labels(monkeypatch)
    rows = boxes((100, 100, 400, 400), (500, 500, 900, 900))
    draw_detections(grey(1000, 1000), detections(rows, [1, 0], [0.456, 0.9]), ["cat", "hot dog"])
    assert [text for _, text in labels] == ["cat 0.90", "hot dog 0.46"]


@pytest.mark.parametrize(
    ("height", "width"), [(75, 100), (100, 100), (480, 640), (4000, 6000), (900, 9), (40, 2000)]
)
def test_labels_lie_in_pictures_of_any_size(
    height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = record_labels(monkeypatch)
    shares = boxes(
        (0, 0, 1, 1), (0.9, 0.9, 1, 1), (0, 0, 0.05, 0.05), (0.4, 0.4, 0.6, 0.6), (0.95, 0, 1, 0.1)
    )
    rows = shares * np.float32([width, height, width, height])
    found = detections(rows, [0, 1, 0, 1, 1], [0.9, 0.8, 0.7, 0.6, 0.5])
    drawn = draw_detections(grey(height, width), found, ["cat", "a very long name " * 20])
    scale = max(1, 960 / max(height, width))
    check_spots([spot for spot, _ in labels], round(width * scale), round(height * scale))
    assert drawn.shape[1] >= round(width * scale)
    if min(height, width) >= 75:
        assert len(labels) == 5
        text = labels[1][1]
        assert text.startswith("a very long")
        assert text.endswith("... 0.80")


def test_ground_truth_of_detections_is_dashed_in_the_colour_of_its_class() -> None:
    truth = (boxes((100, 100, 900, 900)), np.array([1], np.int32))
    drawn = draw_detections(grey(1000, 1000), detections(boxes(), [], []), ["cat", "dog"], truth)
    line = pixels_of(drawn[100, 100:900], CLASS_COLOURS[1])
    assert 0.3 < line.mean() < 0.7
    assert pixels_of(drawn[1000:], CLASS_COLOURS[1]).any(), "the legend names its class"


def test_a_picture_without_detections_says_so() -> None:
    drawn = draw_detections(grey(1000, 1000), detections(boxes(), [], []), ["cat"])
    assert (drawn[:1000] == GREY).all()
    assert pixels_of(drawn[1000:], LIGHT).any()


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
