"""Open the pictures that a user names: paths, folders, globs and URLs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rpn_jax.config import DataConfig
from rpn_jax.console import picture_progress
from rpn_jax.data.bad_pictures import BadPictures
from rpn_jax.data.files import PictureFiles, find_pictures
from rpn_jax.errors import UserError
from rpn_jax.weights.torch.download import download_again


def open_pictures(sources: Sequence[str], config: DataConfig, console: Console) -> PictureFiles:
    """Return pictures as a dataset, each once, with ids 1, 2, ...

    A URL is downloaded to the cache folder, each time it is used, and is the name of its picture.

    Args:
      sources: picture files, folders of pictures, globs, or https URLs.
      config: ``on_bad_picture`` says what to do about a file that is not a picture.
      console: console for the progress.

    Raises:
      UserError: a source matches nothing, cannot be read or downloaded, or is not a picture, or all
        files are skipped.
    """
    names: dict[Path, str] = {}
    paths: list[str] = []
    for source in sources:
        path = picture_path(source)
        if is_url(source):
            names[path] = source
        paths.append(str(path))
    files = find_pictures(paths)
    with picture_progress(console, "reading the sizes of", len(files)) as advance:
        opened = PictureFiles(files, names, advance, BadPictures(config))
    if not opened.pictures:
        raise UserError(f"{', '.join(sources)}: no file is a picture that can be read")
    return opened


def picture_path(source: str) -> Path:
    """Return the path of a picture. Download it to the cache folder if it is a URL."""
    return download_again(source, "picture") if is_url(source) else Path(source)


def is_url(source: str) -> bool:
    """Return whether a source is a URL."""
    return source.startswith(("https://", "http://"))
