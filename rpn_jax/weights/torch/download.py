"""A source's file on this machine: a path as it is, a name or URL through the cache.

The cache is ``$XDG_CACHE_HOME/rpn_jax`` (``~/.cache/rpn_jax``), by host and path of the URL. A
download that broke off goes on where it stopped, and what arrived is checked against the digits of
its SHA-256 that published files carry in their names (``resnet50-0676ba61.pth``).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rpn_jax.errors import UserError, nearest, reading, writing
from rpn_jax.files import cache_folder
from rpn_jax.weights.torch.tables import NAMED_FILES

if TYPE_CHECKING:
    from http.client import HTTPResponse

Progress = Callable[[int, int | None], None]
"""Told the bytes that have arrived and, if known, the bytes of the whole file."""

ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 20
PASSING_STATUSES = (408, 429, 500, 502, 503, 504)
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


class BrokenOff(Exception):
    """A download ended before its file did; what arrived is kept."""


def local_file(source: str, pause_seconds: float = FIRST_PAUSE_SECONDS) -> Path:
    """The file that ``source`` names, downloaded if it is not here.

    Args:
      source: a path, an https URL (http from this machine itself), or a key of
        `rpn_jax.weights.torch.tables.NAMED_FILES`.
      pause_seconds: before the second attempt; doubles with every further one.

    Raises:
      UserError: no such file or name, one that cannot be read, no answer, or a file that its
        name's digits disprove.
    """
    url = NAMED_FILES[source].url if source in NAMED_FILES else source
    if url.startswith(("https://", "http://")):
        return _cached(url, pause_seconds)
    if "://" in url:
        names = list(NAMED_FILES)
        raise UserError(
            f"weights '{source}': no such name{nearest(source, names)} (known: {', '.join(names)})"
        )
    path = Path(source)
    with reading(f"weights {source}"):
        if path.is_dir():
            raise UserError(f"weights {source}: is a folder, where a .pth or .pkl file is wanted")
        if not path.is_file():
            raise UserError(f"weights {source}: no such file")
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digits_in_name(name: str) -> str | None:
    """The first digits of the SHA-256 that a published file's name ends in, if it does."""
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    return match[1] if match else None


def compare_digits(name: str, sha256: str) -> Literal["match", "differ", "none"]:
    """Whether the digits in a file's name are those of its SHA-256; 'none' without digits."""
    digits = digits_in_name(name)
    if digits is None:
        return "none"
    return "match" if sha256.startswith(digits) else "differ"


def cache_path(url: str) -> Path:
    """Where the cache keeps the file of ``url``. Raises UserError for a URL that names no file."""
    parts = urllib.parse.urlsplit(url)
    steps = parts.path.strip("/").split("/")
    if not parts.hostname or not all(steps) or ".." in steps:
        raise UserError(f"weights {url}: names no file")
    if parts.query:  # what tells two files apart may stand there
        steps.insert(0, hashlib.sha256(url.encode()).hexdigest()[:8])
    return cache_folder().joinpath(parts.hostname, *steps)


def _cached(url: str, pause_seconds: float) -> Path:
    _check_transport(url)
    path = cache_path(url)
    if not path.is_file():
        _download(url, path, pause_seconds)
    sha256 = sha256_of(path)
    if compare_digits(path.name, sha256) == "differ":
        path.unlink()
        raise UserError(
            f"weights {url}: what arrived was altered or cut off, and was removed: its SHA-256 is "
            f"{sha256}, but its name says {digits_in_name(path.name)}; try again"
        )
    return path


def _check_transport(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in LOCAL_HOSTS:
        raise UserError(f"weights {url}: can be altered on the way; use https")


def _download(url: str, path: Path, pause_seconds: float) -> None:
    """Download to ``path``, through ``path.part``, in several attempts if need be."""
    with writing(f"cache {path.parent}", "Set XDG_CACHE_HOME to another folder."):
        path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if digits_in_name(path.name) is None:
        part.unlink(missing_ok=True)  # without digits, nothing tells whether old bytes still fit
    with _progress_bar(path.name) as progress:
        for attempt in range(ATTEMPTS):
            if attempt > 0:
                time.sleep(pause_seconds * 2 ** (attempt - 1))
            try:
                _fetch_rest(url, part, progress)
            except urllib.error.HTTPError as error:
                reason = f"the server answered {error.code} {error.reason}"
                if error.code not in PASSING_STATUSES:
                    raise UserError(f"weights {url}: {reason}") from None
            except (OSError, http.client.HTTPException, BrokenOff) as error:
                reason = str(error) or type(error).__name__
            else:
                part.replace(path)
                return
    raise UserError(f"weights {url}: not downloaded in {ATTEMPTS} attempts ({reason})")


@contextlib.contextmanager
def _progress_bar(name: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(name, total=None)
        yield lambda have, total: bars.update(task, completed=have, total=total)


def _fetch_rest(url: str, part: Path, progress: Progress) -> None:
    """Append to ``part`` what is missing of the file; raises BrokenOff if less arrives."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            part.unlink()
            raise BrokenOff("the part that was kept is not of this file") from None
        raise
    with response:
        _check_transport(response.url)  # a redirect may have led elsewhere
        if not _goes_on_at(response, have):
            have = 0
        total = _total_bytes(response, have)
        with part.open("ab" if have else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                have += len(chunk)
                progress(have, total)
    if total is not None and have != total:
        raise BrokenOff(f"broke off at {have} of {total} bytes")


def _goes_on_at(response: HTTPResponse, offset: int) -> bool:
    content_range = response.headers.get("Content-Range", "")
    return response.status == 206 and content_range.startswith(f"bytes {offset}-")


def _total_bytes(response: HTTPResponse, offset: int) -> int | None:
    length = response.headers.get("Content-Length")
    return offset + int(length) if length is not None else None
