"""Downloads from a local server with configurable failures."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from rpn_jax.errors import UserError
from rpn_jax.weights.torch import download
from rpn_jax.weights.torch.download import cache_path, digits_in_name, local_file

CONTENT = np.random.default_rng(0).bytes(3_000_000)
DIGITS = hashlib.sha256(CONTENT).hexdigest()[:8]
NAME = f"rpn-{DIGITS}.pth"


class Server(ThreadingHTTPServer):
    """Server that sends CONTENT for every path and records the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.statuses: list[int] = []  # status codes of the first answers
        self.break_after: list[int] = []  # number of bytes after which the connection is closed
        self.with_ranges = True
        self.with_length = True
        self.redirect_to = ""
        self.ranges: list[str | None] = []

    def url(self, name: str = NAME) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/models/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        if self.server.redirect_to:
            self.send_response(302)
            self.send_header("Location", self.server.redirect_to)
            self.end_headers()
            return
        if self.server.statuses:
            self.send_error(self.server.statuses.pop(0))
            return
        content = self.server.content
        start = 0
        if wanted and self.server.with_ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.server.with_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + self.server.break_after.pop(0) if self.server.break_after else None
        self.wfile.write(content[start:end])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def fetch(server: Server, name: str = NAME) -> Path:
    return local_file(server.url(name), pause_seconds=0.0)


def test_a_file_is_downloaded_to_the_cache_once(server: Server, tmp_path: Path) -> None:
    path = fetch(server)
    assert path == tmp_path / "cache" / "rpn_jax" / "127.0.0.1" / "models" / NAME
    assert path.read_bytes() == CONTENT
    assert fetch(server) == path
    assert server.ranges == [None]


def test_an_interrupted_download_continues(server: Server) -> None:
    server.break_after = [1_000_000, 500_000]
    assert fetch(server).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_download_continues_after_the_process_was_killed(server: Server) -> None:
    part = cache_path(server.url()).with_name(NAME + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:2_000_000])
    assert fetch(server).read_bytes() == CONTENT
    assert server.ranges == ["bytes=2000000-"]
    assert not part.exists()


def test_a_download_starts_again_if_the_server_ignores_ranges(server: Server) -> None:
    server.break_after = [1_000_000]
    server.with_ranges = False
    assert fetch(server).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000000-"]


def test_a_download_starts_again_if_the_part_is_longer_than_the_file(server: Server) -> None:
    part = cache_path(server.url()).with_name(NAME + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT + b"more")
    assert fetch(server).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT) + 4}-", None]


def test_old_bytes_are_not_used_without_digits_in_the_name(server: Server) -> None:
    part = cache_path(server.url("R-50.pkl")).with_name("R-50.pkl.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"of another file")
    assert fetch(server, "R-50.pkl").read_bytes() == CONTENT
    assert server.ranges == [None]


def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.statuses = [503, 429]
    assert fetch(server).read_bytes() == CONTENT
    assert len(server.ranges) == 3


def test_the_received_bytes_are_kept_after_the_last_attempt(server: Server) -> None:
    server.break_after = [10] * download.ATTEMPTS
    with pytest.raises(UserError, match=rf"the connection ended after 50 of {len(CONTENT)} bytes"):
        fetch(server)
    assert cache_path(server.url()).with_name(NAME + ".part").read_bytes() == CONTENT[:50]
    assert not cache_path(server.url()).exists()


def test_a_missing_file_is_requested_once(server: Server) -> None:
    server.statuses = [404]
    with pytest.raises(UserError, match="answered 404"):
        fetch(server)
    assert len(server.ranges) == 1


@pytest.mark.parametrize(
    "content", [CONTENT[:-1], CONTENT[:-1] + b"?", b""], ids=["truncated", "altered", "empty"]
)
def test_content_that_does_not_match_the_name_is_removed(content: bytes, server: Server) -> None:
    server.content = content
    server.with_length = False
    with pytest.raises(UserError, match=f"the file is damaged.*{DIGITS}"):
        fetch(server)
    assert not list(cache_path(server.url()).parent.iterdir())
    server.content = CONTENT
    assert fetch(server).read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache_is_removed(server: Server) -> None:
    path = fetch(server)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="damaged"):
        fetch(server)
    assert fetch(server).read_bytes() == CONTENT


def test_redirects_to_http_on_other_hosts_are_errors(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.redirect_to = server.url().replace("127.0.0.1", "localhost") + "?x"
    monkeypatch.setattr(download, "LOCAL_HOSTS", ("127.0.0.1",))
    second = []

    class Elsewhere:
        status, url = 200, server.redirect_to
        headers: ClassVar[dict[str, str]] = {}

        def __enter__(self):
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def read(self, size: int) -> bytes:
            second.append(size)
            return b""

    monkeypatch.setattr("urllib.request.urlopen", lambda request, timeout: Elsewhere())
    with pytest.raises(UserError, match="Use https"):
        fetch(server)
    assert not second


def test_a_server_that_does_not_answer_is_an_error(server: Server) -> None:
    url = server.url()
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="cannot be downloaded in 5 attempts"):
        local_file(url, pause_seconds=0.0)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("http://example.org/w.pth", "Use https"),
        ("https://example.org/", "names no file"),
        ("https://example.org/../w.pth", "names no file"),
        ("torchvision://resnet5", r"did you mean 'torchvision://resnet50'\?"),
        ("nowhere.pth", "nowhere.pth: no such file"),
    ],
)
def test_wrong_sources_are_errors(source: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        local_file(source)


def test_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        local_file(str(tmp_path))


def test_a_file_in_an_unreadable_folder_is_an_error(
    tmp_path: Path, forbid: Callable[[Path], None]
) -> None:
    forbid(tmp_path)
    with pytest.raises(UserError, match=r"w\.pth: cannot be read \(Permission denied\)$"):
        local_file(str(tmp_path / "w.pth"))


def test_the_error_for_an_unwritable_cache_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="Set XDG_CACHE_HOME"):
        local_file("https://example.org/w.pth")


def test_urls_with_different_queries_have_different_paths_in_the_cache() -> None:
    one, two = (cache_path(f"https://example.org/uc?id={number}") for number in (1, 2))
    assert one != two
    assert cache_path("https://example.org/uc?id=1") == one


@pytest.mark.parametrize(
    ("name", "digits"),
    [
        ("resnet50-0676ba61.pth", "0676ba61"),
        (f"resnet50-{'0676ba61' * 2}.pth", "0676ba61" * 2),
        (f"resnet50-{'0676ba61' * 8}.pth", "0676ba61" * 8),
        ("resnet50-0676ba6.pth", None),
        (f"resnet50-{'0676ba61' * 8}0.pth", None),
        ("resnet50-0676ba6z.pth", None),
        ("resnet50-0676ba61-copy.pth", None),
    ],
)
def test_between_8_and_64_digits_at_the_end_of_a_name_count(name: str, digits: str | None) -> None:
    assert digits_in_name(name) == digits
