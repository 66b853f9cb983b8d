"""Which connections process 0 accepts."""

import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from rpn_jax.hosts import group

SECRET = 1234


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def connect(server: socket.socket, greeting: bytes) -> socket.socket:
    connection = socket.create_connection(server.getsockname())
    connection.sendall(greeting)
    return connection


def reset(connection: socket.socket) -> None:
    """Close a connection so that the other side sees a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_connections_of_other_programs_are_closed(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "SECONDS_TO_GREET", 0.2)
    reset(connect(server, b""))
    connect(server, b"GET").close()
    silent = connect(server, b"")
    wrong = connect(server, group.HELLO.pack(SECRET + 1, 1))
    peers = [connect(server, group.HELLO.pack(SECRET, number)) for number in (2, 1)]
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(group._accept, server, 2, SECRET, 20.0).result(timeout=30)
    assert sorted(found) == [1, 2]
    assert silent.recv(1) == wrong.recv(1) == b""
    for connection in (silent, wrong, *peers, *found.values()):
        connection.close()


def test_a_process_that_never_connects_is_an_error_in_time(server: socket.socket) -> None:
    with pytest.raises(TimeoutError):
        group._accept(server, 1, SECRET, 0.1)
