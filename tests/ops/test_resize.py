"""Resizing against OpenCV: all kinds of sizes, mirrored and not, under jit and vmap."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpn_jax.errors import UserError
from rpn_jax.ops import resize_bilinear

cv2 = pytest.importorskip("cv2")

OLD_CANVAS, CANVAS = (40, 48), (56, 64)
EDGE_SIZES = [
    ((1, 1), (1, 1)),
    ((1, 1), (56, 64)),
    ((40, 48), (1, 1)),
    ((1, 48), (56, 1)),
    ((40, 1), (1, 64)),
    ((40, 48), (40, 48)),
    ((20, 24), (40, 48)),
    ((40, 48), (20, 24)),
    ((39, 47), (13, 47)),
    ((2, 3), (55, 63)),
]

resize = jax.jit(resize_bilinear, static_argnames="canvas")


def random_pictures(count, canvas=OLD_CANVAS, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *canvas, 3), np.uint8)


def expected(picture, old_size, new_size, mirrored, canvas=CANVAS):
    original = np.ascontiguousarray(picture[: old_size[0], : old_size[1]])
    resized = cv2.resize(original, new_size[::-1], interpolation=cv2.INTER_LINEAR)
    padded = np.zeros((*canvas, 3), np.uint8)
    padded[: new_size[0], : new_size[1]] = resized[:, ::-1] if mirrored else resized
    return padded


def largest_difference(one, other):
    return np.abs(np.asarray(one, np.int64) - np.asarray(other, np.int64)).max()


def sizes_within(canvas):
    return st.tuples(st.integers(1, canvas[0]), st.integers(1, canvas[1]))


@settings(deadline=None, max_examples=100)
@given(sizes_within(OLD_CANVAS), sizes_within(CANVAS), st.booleans(), st.integers(0, 2**16))
def test_within_a_grey_level_of_opencv_from_any_size_to_any(old_size, new_size, mirrored, seed):
    (picture,) = random_pictures(1, seed=seed)
    resized = resize(
        picture, np.int32(old_size), np.int32(new_size), np.bool_(mirrored), canvas=CANVAS
    )
    assert resized.shape == (*CANVAS, 3)
    assert resized.dtype == np.uint8
    reference = expected(picture, old_size, new_size, mirrored)
    assert largest_difference(resized, reference) <= 1
    # Beyond the picture, what lies beyond the original must not shine through.
    assert not np.asarray(resized)[new_size[0] :].any()
    assert not np.asarray(resized)[:, new_size[1] :].any()


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_batch_of_edge_cases_each_with_its_own_sizes(mirrored):
    pictures = random_pictures(len(EDGE_SIZES))
    old_sizes, new_sizes = np.array(EDGE_SIZES, np.int32).transpose(1, 0, 2)
    flips = np.full(len(EDGE_SIZES), mirrored)
    resized = resize(pictures, old_sizes, new_sizes, flips, canvas=CANVAS)
    for picture, (old_size, new_size), got in zip(pictures, EDGE_SIZES, resized, strict=True):
        reference = expected(picture, old_size, new_size, mirrored)
        assert largest_difference(got, reference) <= 1, (old_size, new_size)
    mapped = jax.jit(jax.vmap(partial(resize_bilinear, canvas=CANVAS)))(
        pictures, old_sizes, new_sizes, flips
    )
    np.testing.assert_array_equal(mapped, resized)


def test_equal_sizes_leave_every_pixel_as_it_is():
    pictures = random_pictures(3)
    sizes = np.int32([(40, 48), (7, 48), (33, 1)])
    resized = np.asarray(resize(pictures, sizes, sizes, np.zeros(3, bool), canvas=CANVAS))
    for picture, (height, width), got in zip(pictures, sizes, resized, strict=True):
        np.testing.assert_array_equal(got[:height, :width], picture[:height, :width])
        assert got.sum() == picture[:height, :width].sum()


def test_several_leading_axes():
    pictures = random_pictures(6).reshape(2, 3, *OLD_CANVAS, 3)
    old_sizes = np.int32([[(40, 48), (9, 30), (5, 5)], [(40, 1), (31, 48), (12, 12)]])
    new_sizes = np.int32([[(20, 24), (56, 64), (9, 3)], [(7, 7), (50, 60), (12, 12)]])
    flips = np.array([[True, False, True], [False, True, False]])
    resized = resize(pictures, old_sizes, new_sizes, flips, canvas=CANVAS)
    for place in np.ndindex(2, 3):
        sizes = tuple(old_sizes[place].tolist()), tuple(new_sizes[place].tolist())
        reference = expected(pictures[place], *sizes, flips[place])
        assert largest_difference(resized[place], reference) <= 1


@pytest.mark.usefixtures("no_shape_checks")
def test_pixels_that_are_not_grey_levels_are_refused():
    sizes = np.int32((4, 4))
    with pytest.raises(UserError, match=r"^resize_bilinear: images are float32\. They"):
        resize_bilinear(np.ones((4, 4, 3), np.float32), sizes, sizes, np.False_, (4, 4))


def test_pixels_of_a_real_size_are_opencv_s_almost_everywhere():
    # A plain float bilinear is within a grey level too, but off by one in a tenth of all pixels.
    canvas = (800, 1088)
    (picture,) = random_pictures(1, (480, 640))
    sizes = np.int32((480, 640)), np.int32((800, 1067))
    resized = np.asarray(resize(picture, *sizes, np.False_, canvas=canvas))
    reference = expected(picture, (480, 640), (800, 1067), False, canvas)
    assert largest_difference(resized, reference) <= 1
    assert (resized != reference).mean() < 1e-3
