"""Pictures from URLs, on a local server."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from rpn_jax.config import DataConfig
from rpn_jax.console import make_console
from rpn_jax.errors import UserError
from rpn_jax.inference.batches import listed_pictures
from rpn_jax.inference.sources import open_pictures


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    """(folder, URL) of a server."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def write(path, grey, height=20):
    assert cv2.imwrite(str(path), np.full((height, 30, 3), grey, np.uint8))


def test_urls_and_files_are_pictures_in_the_given_order(server, tmp_path):
    folder, url = server
    write(folder / "a.png", 10)
    write(tmp_path / "b.png", 20)
    sources = [f"{url}/a.png", str(tmp_path / "b.png"), f"{url}/a.png?size=2"]
    dataset = open_pictures(sources, DataConfig(), make_console())
    assert [picture.name for picture in dataset.pictures] == sources
    assert [dataset.load_image(i)[0, 0, 0] for i in range(3)] == [10, 20, 10]


def test_a_url_is_downloaded_again(server):
    folder, url = server
    for grey in (10, 90):
        write(folder / "a.png", grey, height=grey)
        dataset = open_pictures([f"{url}/a.png"], DataConfig(), make_console())
        assert dataset.pictures[0].height == grey
        assert dataset.load_image(0)[0, 0, 0] == grey


def test_python_takes_urls(server):
    folder, url = server
    write(folder / "a.png", 10)
    assert listed_pictures([f"{url}/a.png"], DataConfig()).load_image(0).shape == (20, 30, 3)


def test_errors_name_the_url(server):
    folder, url = server
    (folder / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=rf"^picture {url}/b.png: the server answered 404"):
        open_pictures([f"{url}/b.png"], DataConfig(), make_console())
    with pytest.raises(UserError, match=rf"^{url}/text.png: is not a picture"):
        open_pictures([f"{url}/text.png"], DataConfig(), make_console())
    with pytest.raises(UserError, match="^picture http://example.org/a.png: .*Use https"):
        open_pictures(["http://example.org/a.png"], DataConfig(), make_console())


def test_files_that_are_no_pictures_are_skipped_if_asked(tmp_path, capsys):
    write(tmp_path / "a.png", 10)
    (tmp_path / "b.png").write_bytes(b"")
    write(tmp_path / "c.png", 30)
    config = DataConfig(on_bad_picture="skip", max_bad_pictures=1)
    for open_each in (
        lambda: open_pictures([str(tmp_path)], config, make_console()),
        lambda: listed_pictures([tmp_path / f"{name}.png" for name in "abc"], config),
    ):
        dataset = open_each()
        assert [picture.image_id for picture in dataset.pictures] == [1, 3]
        assert [dataset.load_image(i)[0, 0, 0] for i in range(2)] == [10, 30]
        assert f"skipped: {tmp_path}/b.png: is not a picture" in capsys.readouterr().err
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"More than data.max_bad_pictures = 1 pictures"):
        open_pictures([str(tmp_path)], config, make_console())
    with pytest.raises(UserError, match=r"b.png: no file is a picture that can be read$"):
        open_pictures([str(tmp_path / "b.png")], config, make_console())
