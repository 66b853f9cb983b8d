"""Normalisation, as OpenCV does it for the reference (its products are rounded from float64)."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rpn_jax.config import PixelConfig
from rpn_jax.ops import normalize_images

CAFFE = PixelConfig(order="bgr", mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0))


@pytest.mark.parametrize("pixels", [PixelConfig(), CAFFE], ids=lambda pixels: pixels.order)
def test_against_opencv_and_zeros_beyond_the_picture(pixels):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 20, 30, 3), np.uint8)
    sizes = np.array([[20, 30], [7, 30], [11, 13]], np.int32)
    got = jax.jit(normalize_images, static_argnums=2)(images, sizes, pixels)
    assert got.dtype == np.float32
    for image, (height, width), normalized in zip(images, sizes, got, strict=True):
        expected = image[:height, :width].astype(np.float32)
        if pixels.order == "bgr":
            expected = cv2.cvtColor(expected, cv2.COLOR_RGB2BGR)
        expected = cv2.subtract(expected, np.array([pixels.mean]))
        expected = cv2.multiply(expected, 1 / np.array([pixels.std]))
        np.testing.assert_allclose(normalized[:height, :width], expected, rtol=2e-7)
        assert not normalized[height:].any()
        assert not normalized[:, width:].any()
