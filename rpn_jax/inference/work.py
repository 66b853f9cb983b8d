"""Describe what determines the results of long work, so that only the same work continues it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from rpn_jax import __version__
from rpn_jax.config import Config, config_fields
from rpn_jax.data.annotated_files import AnnotatedFiles
from rpn_jax.data.dataset import Dataset
from rpn_jax.data.files import PictureFiles
from rpn_jax.data.views import source_of
from rpn_jax.errors import UserError
from rpn_jax.inference.sources import is_url
from rpn_jax.structures import Variables

if TYPE_CHECKING:
    from jaxtyping import Int64

DETERMINING = ("model.", "pixels.", "rpn_proposals.", "roi_detections.")
"""Sections of a config that determine the results of a picture."""
DETERMINING_DATA = ("data.scale", "data.buckets", "data.resize")
"""Fields of the data section that determine the results of a picture."""
DIGITS = 12
"""Number of digits of a SHA-256."""
LONGEST_TEXT = 60
"""Number of characters of the longest value. A longer one is replaced by its digest."""


def describe_model(config: Config, variables: Variables) -> dict[str, str]:
    """Return what determines the results of a picture, by name."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).data)
    settings = {
        key: _short(str(value))
        for key, value in config_fields(config).items()
        if key.startswith(DETERMINING) or key in DETERMINING_DATA
    }
    return {"rpn_jax": __version__, "weights": digest.hexdigest()[:DIGITS], **settings}


def describe_list(lines: Iterable[str]) -> str:
    """Return the length and the digest of a list."""
    digest, count = hashlib.sha256(), 0
    for line in lines:
        # Python holds the bytes of a file name that is not UTF-8 as surrogates.
        digest.update(f"{line}\n".encode(errors="surrogatepass"))
        count += 1
    return f"a list of {count} with digest {digest.hexdigest()[:DIGITS]}"


def file_states(dataset: Dataset) -> Int64[np.ndarray, "N 2"]:
    """Return the size (bytes) and the modification time (ns) of each picture's file.

    Both are 0 for a picture that has no file of its own, cannot be read, or comes from a URL. A URL
    is downloaded again by each command.
    """
    states = np.zeros((len(dataset.pictures), 2), np.int64)
    for index, state in enumerate(states):
        path = _picture_file(dataset, index)
        if path is not None:
            with contextlib.suppress(OSError):
                status = path.stat()
                state[:] = status.st_size, status.st_mtime_ns
    return states


def _picture_file(dataset: Dataset, index: int) -> Path | None:
    source, position = source_of(dataset, index)
    name = source.pictures[position].name
    if isinstance(source, AnnotatedFiles):
        return source.folder / name
    return Path(name) if isinstance(source, PictureFiles) and not is_url(name) else None


def check_same_work(path: Path, work_before: Mapping[str, str], work: Mapping[str, str]) -> None:
    """Raise a UserError that names the first difference of two descriptions of the work.

    Args:
      path: file with the description of the unfinished work.
      work_before: that description, by name.
      work: description of the work to do now.
    """
    for name in sorted(work.keys() | work_before.keys()):
        before, now = work_before.get(name), work.get(name)
        if before != now:
            raise UserError(
                f"{path}: holds unfinished results with {name} = {before}, but now it is {now}. "
                "Repeat the earlier command to finish them, remove the file to start again, or "
                "choose another --out."
            )


def _short(text: str) -> str:
    if len(text) <= LONGEST_TEXT:
        return text
    return f"a value with digest {hashlib.sha256(text.encode()).hexdigest()[:DIGITS]}"
