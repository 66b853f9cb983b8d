"""Join the processes of a run, and end this one if another is lost.

`jax.distributed` connects the devices. When a process dies, it ends the others with a C++ stack
trace, after its heartbeat timeout. So each process also keeps a TCP connection to process 0. The
system closes it as soon as a process dies, and keepalive packets detect a dead host.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable

from rpn_jax.devices import use_platform
from rpn_jax.errors import UserError, exit_code
from rpn_jax.hosts.settings import HostFlags, HostSettings, find_hosts

LOST = 3
"""Exit code of a process that ends because another one was lost."""
HELLO = struct.Struct("<II")
"""First bytes of a connection: the number that process 0 sent to all, and the process id."""
BYE, FAILED = b".", b"!"
"""Sent before a connection is closed: after the work is done, or after an error."""
SECONDS_TO_GREET = 10
"""Time in which a process that connected sends its number. Another program may send nothing."""
SECONDS_TO_START = 60
"""Shortest time in which all processes must start and connect, for slow imports and machines."""
SECONDS_TO_REPORT = 2.0
"""Time for the other processes to print an error of their own before this one closes."""


def run_on_hosts(flags: HostFlags, platform: str, work: Callable[[], None]) -> int:
    """Run ``work`` as one of the processes that flags, environment variables or SLURM name.

    With one process nothing is joined, and errors are raised as usual.

    Args:
      flags: the flags of the command.
      platform: value of --platform, see `use_platform`.
      work: the command.

    Returns:
      0, or an exit code of `exit_code`. A process that fails does not return: it ends at once,
      because the others may wait for it for ever.

    Raises:
      UserError: the flags are wrong, or not all processes started.
    """
    settings = find_hosts(flags, os.environ)
    if settings is None:
        use_platform(platform)
        work()
        return 0

    def command() -> int:
        work()
        return 0

    _join(settings, flags.peer_timeout)
    use_platform(platform)
    _check_devices()
    peers = _connect(settings, flags.peer_timeout)
    _print_processes(settings)
    try:
        code = exit_code(command)
        if code in (0, 130):  # 130: all processes stopped after the same step.
            _leave(peers, is_main=settings.process_id == 0)
            return code
    except Exception:
        # A collective operation can fail before the watching threads have seen why.
        time.sleep(SECONDS_TO_REPORT)
        traceback.print_exc()
        code = 1
    time.sleep(SECONDS_TO_REPORT)
    peers.send_failure()
    time.sleep(SECONDS_TO_REPORT)
    _end(code)
    return code


def _join(settings: HostSettings, timeout: int) -> None:
    import jax

    # JAX would replace the handler of SIGTERM, which stops a run after its step.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            settings.coordinator,
            settings.process_count,
            settings.process_id,
            local_device_ids=settings.local_device,
            cluster_detection_method="deactivate",
            initialization_timeout=max(timeout, SECONDS_TO_START),
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        print(
            f"error: process {settings.process_id} of {settings.process_count}: the processes did "
            f"not all meet at {settings.coordinator} ({reason}). Start all of them within "
            f"{max(timeout, SECONDS_TO_START)} s, and check the address.",
            file=sys.stderr,
        )
        _end(2)


def _check_devices() -> None:
    import jax

    counts = [len(jax.local_devices(process_index=p)) for p in range(jax.process_count())]
    if len(set(counts)) > 1:
        raise UserError(
            f"the processes have {', '.join(map(str, counts))} devices. Give all the same number, "
            "for example with CUDA_VISIBLE_DEVICES."
        )


def _print_processes(settings: HostSettings) -> None:
    import jax

    print(
        f"process {settings.process_id} of {settings.process_count} (coordinator "
        f"{settings.coordinator}, {settings.source}): {jax.local_device_count()} of "
        f"{jax.device_count()} devices",
        flush=True,
    )


class _Peers:
    """Connections to other processes: process 0 has one to each, the others one to process 0."""

    def __init__(self, connections: dict[int, socket.socket]) -> None:
        self._connections = connections
        self._failed = False
        self._said_bye = {peer: threading.Event() for peer in connections}
        for peer in connections:
            threading.Thread(target=self._watch, args=(peer,), daemon=True).start()

    def send(self, message: bytes) -> None:
        for connection in self._connections.values():
            with contextlib.suppress(OSError):  # The watching thread sees the same error.
                connection.sendall(message)

    def send_failure(self) -> None:
        """Let the other processes end, without reporting that they do."""
        self._failed = True
        self.send(FAILED)

    def wait_for_bye(self) -> None:
        for said_bye in self._said_bye.values():
            said_bye.wait()

    def _watch(self, peer: int) -> None:
        try:
            received = self._connections[peer].recv(1)
        except OSError:
            received = b""
        if received == BYE:
            self._said_bye[peer].set()
            return
        if self._failed:
            return
        print(
            f"error: process {peer} was lost: it ended, or its host does not answer. Its own log "
            "has the reason. Start all processes again, a training with --resume.",
            file=sys.stderr,
        )
        _end(LOST)


def _connect(settings: HostSettings, timeout: int) -> _Peers:
    """Connect to process 0, whose port is sent through `jax.distributed`.

    Raises:
      UserError: a process did not connect in time.
    """
    import numpy as np
    from jax.experimental import multihost_utils

    host = settings.coordinator.rpartition(":")[0].strip("[]")
    if settings.process_id == 0:
        # Only processes of this run may connect. The port is free by chance, so check a number too.
        secret = int.from_bytes(os.urandom(4), "little")
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        server = socket.create_server(
            ("", 0), family=family, dualstack_ipv6=family == socket.AF_INET6
        )
        port = server.getsockname()[1]
    else:
        secret = port = 0
    values = np.array([port, secret], np.uint32)
    port, secret = multihost_utils.broadcast_one_to_all(values).tolist()
    seconds = max(timeout, SECONDS_TO_START)
    try:
        if settings.process_id != 0:
            connection = socket.create_connection((host, port), seconds)
            connection.sendall(HELLO.pack(secret, settings.process_id))
            return _Peers({0: _watched(connection, timeout)})
        with server:
            connections = _accept(server, settings.process_count - 1, secret, seconds)
    except OSError as error:
        raise UserError(
            f"process {settings.process_id}: cannot connect to the others through {host}:{port} "
            f"({error}). The hosts must be able to reach each other on all ports."
        ) from None
    return _Peers({peer: _watched(each, timeout) for peer, each in connections.items()})


def _accept(
    server: socket.socket, count: int, secret: int, seconds: float
) -> dict[int, socket.socket]:
    """Return the connections of ``count`` processes. Other programs' connections are closed."""
    connections: dict[int, socket.socket] = {}
    while len(connections) < count:
        server.settimeout(seconds)
        connection, _ = server.accept()
        peer = _greeting_of(connection, secret)
        if peer is None:
            connection.close()
        else:
            connections[peer] = connection
    return connections


def _greeting_of(connection: socket.socket, secret: int) -> int | None:
    """Return the number of the process that connected, None if it is another program."""
    connection.settimeout(SECONDS_TO_GREET)
    try:
        hello = connection.recv(HELLO.size, socket.MSG_WAITALL)
    except OSError:
        return None
    if len(hello) < HELLO.size:
        return None
    number, peer = HELLO.unpack(hello)
    return peer if number == secret else None


def _watched(connection: socket.socket, timeout: int) -> socket.socket:
    """Let the system close a connection whose other host is silent for ``timeout`` seconds."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probes = 5
    interval = max(timeout // (2 * probes), 1)
    for name, value in (
        ("TCP_KEEPIDLE", max(timeout // 2, 1)),
        ("TCP_KEEPINTVL", interval),
        ("TCP_KEEPCNT", probes),
    ):
        if hasattr(socket, name):  # Not every system has all of them.
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _leave(peers: _Peers, is_main: bool) -> None:
    """Wait until every process is done, and disconnect."""
    import jax

    if is_main:
        peers.wait_for_bye()
        peers.send(BYE)
    else:
        peers.send(BYE)
        peers.wait_for_bye()
    jax.distributed.shutdown()


def _end(code: int) -> None:
    """End this process without waiting for the others, which `sys.exit` would do."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
