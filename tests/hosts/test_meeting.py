"""How the processes of a run meet: who is let in, and what is said if somebody is missing."""

import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from rpn_jax.errors import UserError
from rpn_jax.hosts import meeting
from rpn_jax.hosts.settings import HostSettings
from tests.hosts.test_runs import free_address

TIME_TO_MEET = 20.0
LIMIT = 30.0


@pytest.fixture
def address() -> str:
    return free_address()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


def settings_of(address: str, process_id: int, count: int = 3) -> HostSettings:
    return HostSettings(address, process_id, count, None, "from a test")


def refusal(meets: Future[dict[int, socket.socket]]) -> str:
    with pytest.raises(UserError) as caught:
        meets.result(LIMIT)
    return str(caught.value)


def connect(address: str, greeting: bytes) -> socket.socket:
    host, port = address.split(":")
    end = time.monotonic() + LIMIT
    while True:
        try:
            connection = socket.create_connection((host, int(port)))
        except ConnectionRefusedError:
            assert time.monotonic() < end, "nobody listens"
            time.sleep(0.01)
            continue
        connection.sendall(greeting)
        return connection


def reset(connection: socket.socket) -> None:
    """Close a connection so that the other side sees a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def close_all(*groups: dict[int, socket.socket]) -> None:
    for group in groups:
        for connection in group.values():
            connection.close()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_meet_in_any_order(address: str, pool: ThreadPoolExecutor, order: tuple) -> None:
    meets = {i: pool.submit(meeting.meet, settings_of(address, i), TIME_TO_MEET) for i in order}
    found = {i: future.result(LIMIT) for i, future in meets.items()}
    assert sorted(found[0]) == [1, 2]
    assert list(found[1]) == list(found[2]) == [0]
    for number in (1, 2):
        found[0][number].sendall(b"%d" % number)
        assert found[number][0].recv(1) == b"%d" % number
    # The port is free for `jax.distributed`, although the connections stay.
    socket.create_server(("", int(address.split(":")[1]))).close()
    close_all(*found.values())


def test_connections_of_other_programs_are_closed(
    address: str, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "SECONDS_TO_GREET", 0.2)
    first = pool.submit(meeting.meet, settings_of(address, 0, 2), TIME_TO_MEET)
    reset(connect(address, b""))
    connect(address, b"GET").close()
    silent = connect(address, b"")
    other = connect(address, b"GET / HTTP/1.1\r\n\r\n")
    second = meeting.meet(settings_of(address, 1, 2), TIME_TO_MEET)
    assert sorted(first.result(LIMIT)) == [1]
    assert silent.recv(1) == b""
    for connection in (silent, other):
        connection.close()
    close_all(first.result(), second)


def test_missing_processes_are_named(address: str, pool: ThreadPoolExecutor) -> None:
    first = pool.submit(meeting.meet, settings_of(address, 0, 4), 2.0)
    second = pool.submit(meeting.meet, settings_of(address, 2, 4), TIME_TO_MEET)
    assert refusal(first) == (
        f"process 1, 3 of 4: did not come to {address} in time. Start all processes, check the "
        "address, or increase --peer-timeout."
    )
    assert refusal(second) == (
        f"process 0 at {address}: ended, or is another program. The log of process 0 has the "
        "reason."
    )


def test_a_process_0_that_does_not_start_is_named(address: str) -> None:
    message = rf"^--coordinator {address}: cannot be reached \(Connection refused\)\. Start"
    with pytest.raises(UserError, match=message):
        meeting.meet(settings_of(address, 1), 0.5)


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(UserError, match=r"^--coordinator no\.invalid:1: cannot be reached \("):
        meeting.meet(settings_of("no.invalid:1", 1), 0.2)


def test_a_program_that_does_not_answer_is_named(address: str) -> None:
    host, port = address.split(":")
    with (
        socket.create_server((host, int(port))),
        pytest.raises(UserError, match=rf"^process 0 at {address}: did not answer in time\. Start"),
    ):
        meeting.meet(settings_of(address, 1), 0.5)


def test_a_port_in_use_is_named(address: str) -> None:
    port = int(address.split(":")[1])
    with (
        socket.create_server(("", port)),
        pytest.raises(UserError, match=rf"cannot listen on port {port} \(Address already in use\)"),
    ):
        meeting.meet(settings_of(address, 0), 1.0)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([(1, 3), (1, 3)], "--process-id 1: two processes have it. Ids must differ."),
        (
            [(1, 2)],
            "--process-count 2: in process 1, but 3 in process 0. Give all processes the same "
            "number.",
        ),
    ],
)
def test_processes_that_disagree_are_refused(
    address: str, pool: ThreadPoolExecutor, others: list[tuple[int, int]], message: str
) -> None:
    first = pool.submit(meeting.meet, settings_of(address, 0), TIME_TO_MEET)
    meets = [
        pool.submit(meeting.meet, settings_of(address, number, count), TIME_TO_MEET)
        for number, count in others
    ]
    assert refusal(first) == message
    for each in meets:
        assert "The log of process 0 has the reason." in refusal(each)
