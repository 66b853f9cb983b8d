"""Decode picture files as the reference does, and read sizes from file headers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import simplejpeg

from rpn_jax.errors import UserError
from rpn_jax.files import check_regular_file, read_file

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from PIL import Image

    from rpn_jax.data.dataset import Picture

# OpenCV would print lines about a broken file in addition to the error message. The level can only
# be set for the whole process.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

MAX_SIDE = 2**20
"""Longest side of a picture that OpenCV reads, pixels."""
EXIF_ORIENTATION = 0x0112
"""EXIF tag of a picture's orientation. Values from 5 exchange height and width."""


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Decode a picture file's bytes to RGB with OpenCV, EXIF orientation applied.

    Raises:
      UserError: the data is not a picture, is truncated, or has more than 2**30 pixels.
    """
    encoded = np.frombuffer(data, np.uint8)
    try:
        bgr = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    except cv2.error as error:  # it raises for pictures above its limits
        raise UserError(f"{name}: is not a picture that OpenCV can read ({error.err})") from None
    if bgr is None:
        raise UserError(f"{name}: is not a picture that OpenCV can read")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Decode a picture file, see `decode_image`. Raises UserError if it cannot be read."""
    return decode_image(read_file(path), str(path))


def jpeg_damage(data: bytes) -> str:
    """Return what is damaged in the pixels of a JPEG file, or '' without damage.

    OpenCV decodes the part before the damage and fills up the rest with grey.
    """
    if not data.startswith(b"\xff\xd8"):
        return ""
    try:
        # Decoding to a small grey picture is enough to read all data, and fast.
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, strict=True)
    except ValueError as error:
        message = str(error)
        return message if message.startswith(("Corrupt", "Premature", "Invalid JPEG")) else ""
    return ""


def image_size(file: Path | BytesIO, name: str) -> tuple[int, int]:
    """Return (height, width) in pixels from a picture's header, EXIF orientation applied.

    Raises:
      UserError: the file is missing, is not a picture, or its EXIF data is broken.
    """
    from PIL import Image

    if isinstance(file, Path):
        check_regular_file(file)
    try:
        with _quiet_pillow(), Image.open(file) as image:
            width, height = image.size
            turned = _exif_of(image).get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
            is_tiff = image.format == "TIFF"
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: is too large ({error})") from None
    except OSError as error:
        # Errors that Pillow raises about a file's content have no `strerror`.
        reason = f"cannot be read ({error.strerror})" if error.strerror else "is not a picture"
        raise UserError(f"{name}: {reason}") from None
    except Exception as error:  # broken EXIF can make Pillow raise anything
        raise UserError(
            f"{name}: its header or EXIF data is broken ({error}); save the picture again"
        ) from None
    if is_tiff:
        # Some Pillow versions apply the EXIF rotation to `size`, others do not: decode the pixels.
        height, width, _ = decode_image(_bytes_of(file), name).shape
        return height, width
    return (width, height) if turned else (height, width)


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Hide Pillow's warnings, for example about large pictures and truncated TIFF files."""
    with warnings.catch_warnings():
        # Limited to Pillow, because the filters are those of all threads.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _exif_of(image: Image.Image) -> Image.Exif:
    """Return the EXIF data as OpenCV sees it. Pillow would also use XMP or a PNG's text."""
    from PIL import Image

    image.getexif()  # reads on to the place where a PNG may have it
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return exif


def _bytes_of(file: Path | BytesIO) -> bytes:
    if isinstance(file, Path):
        return file.read_bytes()
    file.seek(0)
    return file.read()


def check_size(image: UInt8[np.ndarray, "H W 3"], picture: Picture, source: str) -> None:
    """Raise UserError if the decoded picture has another size than ``source`` says."""
    height, width = image.shape[:2]
    if (height, width) != (picture.height, picture.width):
        raise UserError(
            f"{picture.name}: is {width}x{height} (width x height, EXIF orientation applied), "
            f"but {source} says {picture.width}x{picture.height}. Correct the one that is wrong"
        )
