"""Picture files of one folder, with their ground truth."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rpn_jax.data.dataset import Picture
from rpn_jax.data.images import check_size, read_image
from rpn_jax.errors import UserError, reading

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8


@dataclass(frozen=True, eq=False)
class AnnotatedFiles:
    """Pictures in the files of a folder (a `Dataset`)."""

    pictures: Sequence[Picture]
    """All pictures. Their names are paths below ``folder``."""
    class_names: tuple[str, ...]
    """Name of each class."""
    category_ids: tuple[int, ...]
    """Id of each class in files of ground truth and results."""
    folder: Path
    """Folder of the pictures."""
    source: str
    """File or folder that states the sizes of the pictures, for messages."""
    frequencies: Mapping[str, str] = field(default_factory=dict)
    """'r', 'c' or 'f' (rare, common, frequent) by the name of the class, in LVIS."""

    def load_image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return RGB pixels. Raises UserError if the file is not a picture or has another size."""
        picture = self.pictures[index]
        image = read_image(self.folder / picture.name)
        check_size(image, picture, self.source)
        return image


def check_files(folder: Path, pictures: Sequence[Picture], source: str) -> None:
    """Check that the file of every picture exists and lies in the folder.

    Args:
      folder: folder of the pictures.
      pictures: pictures whose names are paths below the folder.
      source: file that names the pictures, for messages.

    Raises:
      UserError: a file is missing, a name points out of the folder, or a folder is unreadable.
    """
    _check_inside(folder, pictures, source)
    # List each folder once: asking for each of 100,000 files is slow on a network drive.
    names = [os.path.split(picture.name) for picture in pictures]
    # Outer folders come first, so that the message names the outermost one that is unreadable.
    folders = {head: folder / head for head in {head for head, _ in names}}
    present = {
        head: {path.name for path in folder_entries(parent)}
        for head, parent in sorted(folders.items(), key=lambda item: item[1])
    }
    missing = [
        picture.name
        for picture, (head, tail) in zip(pictures, names, strict=True)
        if tail not in present[head]
    ]
    if missing:
        raise UserError(
            f"{folder / missing[0]}: no such picture, but {source} names it "
            f"({len(missing)} of {len(names)} pictures are missing)"
        )


def folder_entries(folder: Path) -> list[Path]:
    """List a folder, or nothing if there is none. `Path.glob` would hide an unreadable folder.

    Raises:
      UserError: the folder cannot be read.
    """
    with reading(folder):
        try:
            return list(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []


def _check_inside(folder: Path, pictures: Sequence[Picture], source: str) -> None:
    """Refuse names such as '../../etc/passwd', so that a dataset reads only its own folder."""
    top = Path(os.path.normpath(folder.absolute()))
    for picture in pictures:
        if picture.name.startswith("/") or ".." in picture.name:
            path = Path(
                os.path.normpath(top / picture.name)
            )  # links inside the folder may lead out
            if not path.is_relative_to(top):
                raise UserError(
                    f"{source}: picture {picture.image_id}: its file name '{picture.name}' points "
                    f"out of the folder {folder}. Correct it, or choose the folder of all "
                    "pictures with --data.train-images or --data.eval-images"
                )
