"""Find the file of a source: a local path, or a name or URL that is downloaded to the cache.

The cache is ``$XDG_CACHE_HOME/rpn_jax`` (default ``~/.cache/rpn_jax``). The host and path of the
URL are the path in the cache. An interrupted download continues where it stopped. The names of
published files contain the first digits of the SHA-256 (``resnet50-0676ba61.pth``). They are
compared with those of the downloaded file.
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
from typing import Literal

from rpn_jax.errors import UserError, nearest, reading, writing
from rpn_jax.files import cache_folder
from rpn_jax.weights.torch.published import NAMED_FILES

Progress = Callable[[int, int | None], None]
"""Called with the number of bytes received and, if it is known, the size of the file."""

ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 20
RETRIED_STATUSES = (408, 429, 500, 502, 503, 504)
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


class IncompleteDownload(Exception):
    """The connection ended before the whole file was received."""


def local_file(source: str, pause_seconds: float = FIRST_PAUSE_SECONDS) -> Path:
    """Return the local path of a source. Download the file if it is not in the cache.

    Args:
      source: a path, an https URL (or http on localhost), or a key of
        `rpn_jax.weights.torch.published.NAMED_FILES`.
      pause_seconds: pause before the second attempt. It doubles with each further attempt.

    Raises:
      UserError: the file or name does not exist, the file cannot be read or downloaded, or its
        SHA-256 does not match the digits in its name.
    """
    url = NAMED_FILES[source].url if source in NAMED_FILES else source
    if url.startswith(("https://", "http://")):
        return _cached(url, "weights", pause_seconds)
    if "://" in url:
        names = list(NAMED_FILES)
        raise UserError(
            f"weights '{source}': unknown name{nearest(source, names)} (known: {', '.join(names)})"
        )
    path = Path(source)
    with reading(f"weights {source}"):
        if path.is_dir():
            raise UserError(
                f"weights {source}: is a folder. Give a .pth or .pkl file. 'convert' writes "
                "one with --to-torch FILE."
            )
        if not path.is_file():
            raise UserError(f"weights {source}: no such file or folder")
    return path


def download_again(url: str, kind: str) -> Path:
    """Download a file to the cache, also if it is there, and return its path.

    Args:
      url: an https URL (or http on localhost).
      kind: what the file is, for messages.

    Raises:
      UserError: the URL names no file, or the file cannot be downloaded.
    """
    _check_transport(url, kind)
    path = cache_path(url, kind)
    _download(url, path, kind, FIRST_PAUSE_SECONDS)
    return path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digits_in_name(name: str) -> str | None:
    """Return the digits of the SHA-256 at the end of a published file's name, or None."""
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    return match[1] if match else None


def compare_digits(name: str, sha256: str) -> Literal["match", "differ", "none"]:
    """Compare the digits in a file's name with its SHA-256. The result is 'none' without digits."""
    digits = digits_in_name(name)
    if digits is None:
        return "none"
    return "match" if sha256.startswith(digits) else "differ"


def cache_path(url: str, kind: str = "weights") -> Path:
    """Return the path of a URL's file in the cache. Raise a UserError if the URL names no file."""
    parts = urllib.parse.urlsplit(url)
    steps = parts.path.strip("/").split("/")
    if not parts.hostname or not all(steps) or ".." in steps:
        raise UserError(f"{kind} {url}: names no file")
    if parts.query:  # URLs of different files may differ only in their query
        steps.insert(0, hashlib.sha256(url.encode()).hexdigest()[:8])
    return cache_folder().joinpath(parts.hostname, *steps)


def _cached(url: str, kind: str, pause_seconds: float) -> Path:
    _check_transport(url, kind)
    path = cache_path(url, kind)
    if not path.is_file():
        _download(url, path, kind, pause_seconds)
    sha256 = sha256_of(path)
    if compare_digits(path.name, sha256) == "differ":
        path.unlink()
        raise UserError(
            f"{kind} {url}: the file is damaged and was removed. Its SHA-256 is {sha256}, but its "
            f"name has the digits {digits_in_name(path.name)}. Try again."
        )
    return path


def _check_transport(url: str, kind: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in LOCAL_HOSTS:
        raise UserError(f"{kind} {url}: http does not protect against changes. Use https.")


def _download(url: str, path: Path, kind: str, pause_seconds: float) -> None:
    """Download a file to ``path.part`` in up to `ATTEMPTS` attempts, then rename it to ``path``."""
    with writing(f"cache {path.parent}", "Set XDG_CACHE_HOME to another folder."):
        path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if digits_in_name(path.name) is None:
        part.unlink(missing_ok=True)  # without digits, old bytes cannot be checked
    with _progress_bar(path.name) as progress:
        for attempt in range(ATTEMPTS):
            if attempt > 0:
                time.sleep(pause_seconds * 2 ** (attempt - 1))
            try:
                _fetch_rest(url, part, kind, progress)
            except urllib.error.HTTPError as error:
                reason = f"the server answered {error.code} {error.reason}"
                if error.code not in RETRIED_STATUSES:
                    raise UserError(f"{kind} {url}: {reason}") from None
            except (OSError, http.client.HTTPException, IncompleteDownload) as error:
                reason = str(error) or type(error).__name__
            else:
                part.replace(path)
                return
    raise UserError(f"{kind} {url}: cannot be downloaded in {ATTEMPTS} attempts ({reason})")


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
        yield lambda received, total: bars.update(task, completed=received, total=total)


def _fetch_rest(url: str, part: Path, kind: str, progress: Progress) -> None:
    """Append the rest of the file to ``part``. Raise IncompleteDownload if it ends too early."""
    received = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(
        url, headers={"Range": f"bytes={received}-"} if received else {}
    )
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and received:
            part.unlink()
            raise IncompleteDownload("the part that was kept is longer than the file") from None
        raise
    with response:
        _check_transport(response.url, kind)  # a redirect may lead to http
        if not _continues_at(response, received):
            received = 0
        total = _total_bytes(response, received)
        with part.open("ab" if received else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                received += len(chunk)
                progress(received, total)
    if total is not None and received != total:
        raise IncompleteDownload(f"the connection ended after {received} of {total} bytes")


def _continues_at(response: http.client.HTTPResponse, offset: int) -> bool:
    content_range = response.headers.get("Content-Range", "")
    return response.status == 206 and content_range.startswith(f"bytes {offset}-")


def _total_bytes(response: http.client.HTTPResponse, offset: int) -> int | None:
    length = response.headers.get("Content-Length")
    return offset + int(length) if length is not None else None
