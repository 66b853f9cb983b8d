"""Connect the processes of a run by TCP, before `jax.distributed` does.

Process 0 listens at the coordinator's address until all others have called. `jax.distributed` uses
the same port afterwards. It would end with a C++ stack trace if a process were missing, so the
processes meet here first.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Set

from rpn_jax.errors import UserError
from rpn_jax.hosts.settings import HostSettings

HELLO = struct.Struct("<8sII")
"""First bytes of a connection: `MAGIC`, the process id and the number of processes."""
MAGIC = b"rpn_jax\n"
GO = b"g"
"""What process 0 sends to all when the last one has called."""
SECONDS_TO_GREET = 10.0
"""Time in which a process that connected sends its number. Another program may send nothing."""
SECONDS_BETWEEN_CALLS = 0.3


def meet(settings: HostSettings, seconds: float) -> dict[int, socket.socket]:
    """Return connections to other processes: process 0 has one to each, the others one to it.

    Args:
      settings: this process, and the address where all meet.
      seconds: time in which all processes must start.

    Raises:
      UserError: the address cannot be used, a process did not come in time, or the processes
        disagree about their numbers.
    """
    end = time.monotonic() + seconds
    if settings.process_id != 0:
        return {0: _call(settings, end)}
    connections: dict[int, socket.socket] = {}
    try:
        with _listen(settings) as server:
            while len(connections) < settings.process_count - 1:
                process_id, connection = _accept(server, settings, end, connections.keys())
                connections[process_id] = connection
    except UserError:
        for connection in connections.values():
            connection.close()
        raise
    for connection in connections.values():
        with contextlib.suppress(OSError):  # The thread that watches it sees the same error.
            connection.sendall(GO)
    return connections


def _listen(settings: HostSettings) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", settings.port), family=family, dualstack_ipv6=both)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise UserError(
            f"--coordinator {settings.coordinator}: process 0 cannot listen on port "
            f"{settings.port} ({reason}). Choose a free port of its host."
        ) from None


def _accept(
    server: socket.socket, settings: HostSettings, end: float, present: Set[int]
) -> tuple[int, socket.socket]:
    """Wait for another process, and return its id and its connection.

    Connections of other programs are closed. ``present`` are the ids of those who came before.
    """
    while True:
        server.settimeout(max(end - time.monotonic(), 0.01))
        try:
            connection, _ = server.accept()
        except TimeoutError:
            missing = sorted({*range(1, settings.process_count)} - present)
            raise UserError(
                f"process {', '.join(map(str, missing))} of {settings.process_count}: did not come "
                f"to {settings.coordinator} in time. Start all processes, check the address, or "
                "increase --peer-timeout."
            ) from None
        greeting = _greeting_of(connection)
        if greeting is None:
            connection.close()
            continue
        try:
            _check_greeting(*greeting, settings.process_count, present)
        except UserError:
            connection.close()
            raise
        return greeting[0], connection


def _check_greeting(process_id: int, count: int, own_count: int, present: Set[int]) -> None:
    if count != own_count:
        raise UserError(
            f"--process-count {count}: in process {process_id}, but {own_count} in process 0. Give "
            "all processes the same number."
        )
    if process_id in present:
        raise UserError(f"--process-id {process_id}: two processes have it. Ids must differ.")


def _greeting_of(connection: socket.socket) -> tuple[int, int] | None:
    """Return the id and the count of a process that connected, None if it is another program."""
    connection.settimeout(SECONDS_TO_GREET)
    try:
        hello = connection.recv(HELLO.size, socket.MSG_WAITALL)
    except OSError:
        return None
    if len(hello) < HELLO.size:
        return None
    magic, process_id, count = HELLO.unpack(hello)
    return (process_id, count) if magic == MAGIC else None


def _call(settings: HostSettings, end: float) -> socket.socket:
    """Return a connection to process 0, after it let all processes go."""
    connection = _connect(settings, end)
    connection.settimeout(max(end - time.monotonic(), 0.01))
    try:
        connection.sendall(HELLO.pack(MAGIC, settings.process_id, settings.process_count))
        answer = connection.recv(len(GO))
    except TimeoutError:
        answer = None
    except OSError:
        answer = b""
    if answer == GO:
        return connection
    connection.close()
    reason = (
        "did not answer in time. Start all processes, check the address, or increase --peer-timeout"
        if answer is None
        else "ended, or is another program. The log of process 0 has the reason"
    )
    raise UserError(f"process 0 at {settings.coordinator}: {reason}.")


def _connect(settings: HostSettings, end: float) -> socket.socket:
    while True:
        try:
            connection = socket.create_connection(
                (settings.host, settings.port), max(end - time.monotonic(), 0.01)
            )
        except OSError as error:
            if time.monotonic() + SECONDS_BETWEEN_CALLS > end:
                raise UserError(
                    f"--coordinator {settings.coordinator}: cannot be reached "
                    f"({error.strerror or error}). Start process 0, check its address, or increase "
                    "--peer-timeout."
                ) from None
        else:
            if connection.getsockname() != connection.getpeername():
                return connection
            connection.close()  # By chance a port of this host can connect to itself.
        time.sleep(SECONDS_BETWEEN_CALLS)
