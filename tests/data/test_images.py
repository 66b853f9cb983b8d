from __future__ import annotations

import io
import struct
from contextlib import nullcontext

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from rpn_jax.data.images import EXIF_ORIENTATION, decode_image, image_size, read_image
from rpn_jax.errors import UserError
from tests.data.coco_folder import picture


def encoded(pixels: np.ndarray, kind: str, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, exif=exif, quality=95)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    data = encoded(picture(0, 24, 40), kind, orientation)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    decoded = decode_image(data, "a")
    assert decoded.shape == expected.shape
    np.testing.assert_allclose(decoded.astype(int), expected, atol=3)
    assert image_size(io.BytesIO(data), "a") == decoded.shape[:2]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP"])
def test_size_of_header_is_size_of_pixels(kind):
    data = encoded(picture(0, 24, 40), kind)
    assert image_size(io.BytesIO(data), "a") == decode_image(data, "a").shape[:2] == (24, 40)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_tiff_has_the_size_of_its_pixels(orientation, tmp_path):
    file = io.BytesIO()
    Image.fromarray(picture(0, 24, 40)).save(file, "TIFF", tiffinfo={EXIF_ORIENTATION: orientation})
    (tmp_path / "a.tif").write_bytes(file.getvalue())
    decoded = read_image(tmp_path / "a.tif")
    assert (decoded.shape[:2] == (40, 24)) == (orientation >= 5)
    assert image_size(tmp_path / "a.tif", "a.tif") == decoded.shape[:2]
    assert image_size(io.BytesIO(file.getvalue()), "a.tif") == decoded.shape[:2]


def turned_by_other_metadata(kind: str) -> bytes:
    """A picture whose orientation stands where OpenCV does not look."""
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    text = PngInfo()
    if kind == "PNG with XMP":
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    elif kind == "PNG with raw profile":
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = 6
        data = exif.tobytes()
        text.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n")
    file = io.BytesIO()
    Image.fromarray(picture(0, 24, 40)).save(file, kind.split()[0], xmp=xmp, pnginfo=text)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG with XMP", "PNG with raw profile"])
def test_an_orientation_outside_exif_turns_neither_size_nor_pixels(kind):
    data = turned_by_other_metadata(kind)
    assert Image.open(io.BytesIO(data)).getexif()[EXIF_ORIENTATION] == 6
    assert image_size(io.BytesIO(data), "a") == decode_image(data, "a").shape[:2] == (24, 40)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16"])
def test_any_colour_mode_becomes_rgb(mode):
    file = io.BytesIO()
    if mode == "I;16":
        Image.fromarray(np.full((6, 9), 300 * 256 % 65536, np.uint16)).save(file, "PNG")
    else:
        Image.fromarray(picture(0, 6, 9)).convert(mode).save(file, "PNG")
    decoded = decode_image(file.getvalue(), "a.png")
    assert decoded.shape == (6, 9, 3)
    assert decoded.dtype == np.uint8


def test_channels_are_red_green_blue():
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[..., 0] = 200
    np.testing.assert_array_equal(decode_image(encoded(pixels, "PNG"), "a.png"), pixels)


def test_jpeg_equals_opencv(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture(3, 33, 47), "JPEG"))
    np.testing.assert_array_equal(read_image(path), cv2.imread(str(path))[..., ::-1])


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8\xff\xe0 no jpeg after all"])
def test_what_is_no_picture_is_refused(tmp_path, data):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"^.*a\.jpg: is not a picture that OpenCV can read$"):
        read_image(path)
    with pytest.raises(UserError, match=r"^.*a\.jpg: is not a picture$"):
        image_size(path, str(path))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_picture_that_breaks_off_is_refused(kind, share):
    data = encoded(picture(0, 240, 400), kind)
    with pytest.raises(UserError, match=r"^a: is not a picture that OpenCV can read$"):
        decode_image(data[: int(len(data) * share)], "a")


def bmp_of_size(height: int, width: int) -> bytes:
    """A BMP whose header says this, with the pixels of a smaller one."""
    data = bytearray(encoded(picture(0, 24, 40), "BMP"))
    struct.pack_into("<ii", data, 18, width, height)
    return bytes(data)


def test_the_header_of_a_panorama_is_read_without_a_warning():
    assert image_size(io.BytesIO(bmp_of_size(5_000, 20_000)), "a") == (5_000, 20_000)


def test_more_pixels_than_opencv_reads_are_named():
    with pytest.raises(UserError, match=r"^a: is not a picture that OpenCV can read \(pixels <= "):
        decode_image(bmp_of_size(40_000, 40_000), "a")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage!", b"II", b"II*\0\0"])
def test_broken_exif_is_named(kind, exif):
    file = io.BytesIO()
    Image.fromarray(picture(0, 24, 40)).save(file, kind, exif=exif)
    with pytest.raises(UserError, match=r"^a: its header or EXIF .*; save the picture again$"):
        image_size(file, "a")


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
def test_a_truncated_picture_prints_nothing(tmp_path, capfd, kind):
    path = tmp_path / "a.pic"
    path.write_bytes(encoded(picture(0, 24, 40), kind)[: 60 if kind == "BMP" else 30])
    with pytest.raises(UserError, match="is not a picture that OpenCV can read"):
        read_image(path)
    with pytest.raises(UserError) if kind == "TIFF" else nullcontext():
        image_size(path, "a")
    assert capfd.readouterr() == ("", "")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"b\.jpg: cannot be read \(No such file or directory\)"):
        read_image(tmp_path / "b.jpg")
    with pytest.raises(UserError, match=r"b\.jpg: cannot be read \(No such file or directory\)"):
        image_size(tmp_path / "b.jpg", "b.jpg")
