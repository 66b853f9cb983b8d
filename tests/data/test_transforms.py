from __future__ import annotations

import numpy as np
import pytest

from rpn_jax.data import transforms


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((480, 640), (1333, 800), (800, 1067)),  # the short side decides: 640 * 800 / 480 + .5
        ((400, 1000), (1333, 800), (533, 1333)),  # the long side decides
        ((640, 480), (1333, 800), (1067, 800)),
        ((500, 500), (1333, 800), (800, 800)),
        ((480, 640), (320, 240), (240, 320)),
        ((3, 7), (10, 10), (4, 10)),  # 30 / 7 = 4.29
        ((5, 7), (10, 5), (5, 7)),
        ((5, 10), (5, 5), (3, 5)),  # 2.5 is rounded up, not to the even number
        ((10, 5), (5, 5), (5, 3)),
        ((1, 5000), (1333, 800), (1, 1333)),  # never without pixels
    ],
)
def test_resized_sizes_by_hand(size, scale, expected):
    assert transforms.resized_sizes(np.array([size]), scale).tolist() == [[*expected]]


def test_resized_sizes_fits_and_keeps_ratio():
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 3000, (300, 2))
    resized = transforms.resized_sizes(sizes, (1333, 800))
    for (height, width), (rows, columns) in zip(sizes, resized, strict=True):
        assert max(rows, columns) <= 1333
        assert min(rows, columns) <= 800
        assert max(rows, columns) == 1333 or min(rows, columns) == 800
        # Each side is at most half a pixel off.
        assert abs(rows / height - columns / width) <= 0.5 / height + 0.5 / width + 1e-9


def bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Half-pixel-centre bilinear without antialiasing, in plain loops."""
    old, result = image.astype(np.float64), np.zeros((*size, 3))
    for row in range(size[0]):
        for column in range(size[1]):
            y = np.clip((row + 0.5) * image.shape[0] / size[0] - 0.5, 0, image.shape[0] - 1)
            x = np.clip((column + 0.5) * image.shape[1] / size[1] - 0.5, 0, image.shape[1] - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, image.shape[0] - 1), min(x0 + 1, image.shape[1] - 1)
            top = old[y0, x0] * (1 - (x - x0)) + old[y0, x1] * (x - x0)
            bottom = old[y1, x0] * (1 - (x - x0)) + old[y1, x1] * (x - x0)
            result[row, column] = top * (1 - (y - y0)) + bottom * (y - y0)
    return result


@pytest.mark.parametrize("size", [(23, 31), (7, 40), (5, 6), (12, 17)])
def test_resize_is_bilinear_without_antialiasing(size):
    image = np.random.default_rng(1).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    resized = transforms.resize(image, size)
    assert resized.dtype == np.uint8
    np.testing.assert_allclose(resized, bilinear(image, size), atol=1.0)


def test_resize_boxes_scales_each_axis_and_stays_inside():
    factors = transforms.scale_factors((480, 640), (800, 1067))
    np.testing.assert_array_equal(factors, np.float32([1067 / 640, 800 / 480]))
    boxes = np.float32([[0, 0, 640, 480], [10, 20, 30, 40]])
    resized = transforms.resize_boxes(boxes, factors, (800, 1067))
    np.testing.assert_allclose(
        resized[1], [10 * 1067 / 640, 20 * 5 / 3, 30 * 1067 / 640, 40 * 5 / 3], rtol=1e-6
    )
    assert resized.dtype == np.float32
    assert (resized[0] <= [1067, 800, 1067, 800]).all()


def test_rounding_moves_no_box_over_the_border():
    """In float32, the factor times the old width exceeds the new width for 3 of these widths."""
    for width in range(100, 200):
        (size,) = transforms.resized_sizes(np.array([(480, width)]), (1333, 800)).tolist()
        factors = transforms.scale_factors((480, width), tuple(size))
        (box,) = transforms.resize_boxes(np.float32([[0, 0, width, 480]]), factors, tuple(size))
        assert box[2] <= size[1]
        assert box[3] <= size[0]


def test_flip_moves_pixels_and_boxes_together():
    image = np.zeros((10, 16, 3), np.uint8)
    image[2:5, 1:7] = 255
    boxes = np.float32([[1, 2, 7, 5]])
    x1, y1, x2, y2 = transforms.flip_boxes(boxes, width=16)[0].astype(int)
    assert (x1, y1, x2, y2) == (9, 2, 15, 5)
    flipped = transforms.flip(image)
    assert (flipped[y1:y2, x1:x2] == 255).all()
    assert flipped.sum() == image.sum()
    np.testing.assert_array_equal(
        transforms.flip_boxes(transforms.flip_boxes(boxes, 16), 16), boxes
    )
    assert transforms.flip_boxes(np.zeros((0, 4), np.float32), 16).shape == (0, 4)


def test_pad_keeps_the_picture_in_the_upper_left():
    image = np.full((3, 4, 3), 9, np.uint8)
    padded = transforms.pad_to(image, (5, 8))
    assert padded.shape == (5, 8, 3)
    np.testing.assert_array_equal(padded[:3, :4], image)
    assert padded.sum() == image.sum()
