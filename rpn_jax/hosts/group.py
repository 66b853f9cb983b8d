"""Join the processes of a run, and end this one if another is lost.

`jax.distributed` connects the devices. When a process dies, it ends the others with a C++ stack
trace, after its heartbeat timeout. So each process also keeps the TCP connection to process 0 with
which they met. The system closes it as soon as a process dies, and keepalive packets detect a dead
host.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable

from rpn_jax.devices import use_platform
from rpn_jax.errors import UserError, exit_code
from rpn_jax.hosts.meeting import meet
from rpn_jax.hosts.settings import HostFlags, HostSettings, find_hosts

LOST = 3
"""Exit code of a process that ends because another one was lost."""
BYE, FAILED = b".", b"!"
"""Sent before a connection is closed: after the work is done, or after an error."""
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
      UserError: the flags are wrong, or the processes did not meet.
    """
    settings = find_hosts(flags, os.environ)
    if settings is None:
        use_platform(platform)
        work()
        return 0

    def command() -> int:
        _join(settings, flags.peer_timeout)
        use_platform(platform)
        _check_devices()
        _print_processes(settings)
        work()
        return 0

    seconds = max(flags.peer_timeout, SECONDS_TO_START)
    print(
        f"process {settings.process_id} of {settings.process_count}: waits up to {seconds} s for "
        f"the others at {settings.coordinator} ({settings.source})",
        flush=True,
    )
    connections = meet(settings, seconds)
    peers = _Peers({peer: _watched(each, flags.peer_timeout) for peer, each in connections.items()})
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
    peers.stop_watching()
    time.sleep(SECONDS_TO_REPORT)
    peers.send(FAILED)
    if settings.process_id == 0:  # JAX ends the others with a stack trace if process 0 is first.
        time.sleep(SECONDS_TO_REPORT)
    _end(code)
    return code


def _join(settings: HostSettings, timeout: int) -> None:
    import jax

    # JAX would replace the handler of SIGTERM, which stops a run after its step.
    jax.config.update("jax_enable_preemption_service", False)
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
        f"process {settings.process_id} of {settings.process_count}: has "
        f"{jax.local_device_count()} of {jax.device_count()} devices",
        flush=True,
    )


class _Peers:
    """Connections to other processes: process 0 has one to each, the others one to process 0."""

    def __init__(self, connections: dict[int, socket.socket]) -> None:
        self._connections = connections
        self._is_watching = True
        self._said_bye = {peer: threading.Event() for peer in connections}
        for peer in connections:
            threading.Thread(target=self._watch, args=(peer,), daemon=True).start()

    def send(self, message: bytes) -> None:
        for connection in self._connections.values():
            with contextlib.suppress(OSError):  # The watching thread sees the same error.
                connection.sendall(message)

    def stop_watching(self) -> None:
        """Let other processes end without a word, because this one ends too."""
        self._is_watching = False

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
        if not self._is_watching:
            return
        print(
            f"error: process {peer} was lost: it ended, or its host does not answer. Its own log "
            "has the reason. Start all processes again, a training with --resume.",
            file=sys.stderr,
        )
        _end(LOST)


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
