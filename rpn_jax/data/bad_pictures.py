"""Skip pictures that cannot be read, and warn about damaged ones, while batches are loaded."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from rpn_jax.data.annotated_files import AnnotatedFiles
from rpn_jax.data.images import jpeg_damage
from rpn_jax.data.views import source_of
from rpn_jax.errors import UserError
from rpn_jax.files import read_file

if TYPE_CHECKING:
    from rpn_jax.config import DataConfig
    from rpn_jax.data.dataset import Dataset

T = TypeVar("T")


class BadPictures:
    """Skips pictures that cannot be read, and counts them. Safe to use from several threads.

    Args:
      config: ``on_bad_picture`` and ``max_bad_pictures``.
      skipped: positions of pictures that were skipped before.
    """

    def __init__(self, config: DataConfig, skipped: Iterable[int] = ()) -> None:
        self._config = config
        self._indices = set(skipped)
        self._lock = threading.Lock()

    def attempt(self, index: int, load: Callable[[], T]) -> T | None:
        """Return what ``load`` returns, or None if picture ``index`` must be skipped.

        Raises:
          UserError: the picture cannot be read and must not be skipped.
        """
        try:
            return load()
        except UserError as error:
            if self._config.on_bad_picture == "error":
                raise
            self._count(index, error)
            return None

    def _count(self, index: int, error: UserError) -> None:
        with self._lock:
            if index in self._indices:
                return
            self._indices.add(index)
            most = self._config.max_bad_pictures
            if len(self._indices) > most:
                raise UserError(
                    f"{error}. More than data.max_bad_pictures = {most} pictures cannot be read"
                )
        print(f"skipped: {error}", file=sys.stderr)


class DamagedPictures:
    """Warns about the first JPEG file with damaged pixels. Safe to use from several threads.

    OpenCV decodes such a file, with grey in the place of what is damaged. Its own message has no
    file name. Each picture is checked once, which costs a fifth of decoding it.

    Args:
      dataset: dataset to train on.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._checked: set[int] = set()
        self._has_warned = False
        self._lock = threading.Lock()

    def check(self, index: int) -> None:
        """Print a warning if picture ``index`` is the first one that is found to be damaged."""
        if self._has_warned or index in self._checked:
            return
        self._checked.add(index)
        damage = picture_damage(self._dataset, index)
        with self._lock:
            if damage and not self._has_warned:
                self._has_warned = True
                print(
                    f"warning: {self._dataset.pictures[index].name}: its pixels are damaged "
                    f"({damage}), so a part of it is decoded as grey. 'rpn-jax check-data' lists "
                    "all such pictures.",
                    file=sys.stderr,
                )


def picture_damage(dataset: Dataset, index: int) -> str:
    """Return what is damaged in a picture file, see `jpeg_damage`. '' for other datasets."""
    source, position = source_of(dataset, index)
    if not isinstance(source, AnnotatedFiles):
        return ""
    return jpeg_damage(read_file(source.folder / source.pictures[position].name))
