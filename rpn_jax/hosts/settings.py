"""Find out which processes take part in a run: from flags, environment variables or SLURM."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rpn_jax.errors import UserError

COORDINATOR, PROCESS_ID, PROCESS_COUNT = (
    "RPN_JAX_COORDINATOR",
    "RPN_JAX_PROCESS_ID",
    "RPN_JAX_PROCESS_COUNT",
)
"""Environment variables with the values of --coordinator, --process-id and --process-count."""
SLURM_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_NODES",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)
"""Variables that ``srun`` sets in each task."""
FIRST_PORT, PORTS = 61440, 4096
"""Range of ports for the coordinator of a SLURM job, as in `jax.distributed`."""

LAST_PORT = 65535


@dataclass(frozen=True)
class HostFlags:
    """Flags of a command that runs on several hosts. None: not given."""

    coordinator: str | None = None
    """HOST:PORT of process 0, where several processes meet. The default is $RPN_JAX_COORDINATOR, or
    comes from SLURM."""
    process_id: int | None = None
    """Number of this process, from 0. The default is $RPN_JAX_PROCESS_ID, or comes from SLURM."""
    process_count: int | None = None
    """Number of processes. 1 ignores SLURM. The default is $RPN_JAX_PROCESS_COUNT, or comes from
    SLURM, or is 1."""
    peer_timeout: int = 100
    """Seconds without a sign of life after which another process counts as lost. Then this process
    ends with exit code 3."""


@dataclass(frozen=True)
class HostSettings:
    """What a process needs to join the others."""

    coordinator: str
    """HOST:PORT of process 0."""
    process_id: int
    process_count: int
    local_device: int | None
    """Position of the only device that this process uses. None: all visible devices."""
    source: str
    """Where the values come from, for the console."""

    @property
    def host(self) -> str:
        """Host of the coordinator."""
        return self.coordinator.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Port of the coordinator."""
        return int(self.coordinator.rpartition(":")[2])


def find_hosts(flags: HostFlags, environment: Mapping[str, str]) -> HostSettings | None:
    """Return the processes of this run, or None if there is only one.

    A flag comes before its environment variable. Without any of them, SLURM's variables are used
    if ``srun`` started more than one task.

    Raises:
      UserError: a value is missing or impossible.
    """
    if flags.peer_timeout < 1:
        raise UserError(f"--peer-timeout {flags.peer_timeout}: must be 1 second or more.")
    coordinator = flags.coordinator or environment.get(COORDINATOR)
    process_id = _first(flags.process_id, _integer(environment, PROCESS_ID))
    count = _first(flags.process_count, _integer(environment, PROCESS_COUNT))
    if coordinator is None and process_id is None and count is None:
        return _slurm_hosts(environment)
    if count == 1:
        return None
    if coordinator is None or process_id is None or count is None:
        given = {
            "--coordinator": coordinator,
            "--process-id": process_id,
            "--process-count": count,
        }
        missing = next(name for name, value in given.items() if value is None)
        raise UserError(
            f"{missing}: is missing. Several processes need --coordinator, --process-id and "
            f"--process-count, or {COORDINATOR}, {PROCESS_ID} and {PROCESS_COUNT}."
        )
    return _checked(coordinator, process_id, count, None, "from flags and environment variables")


def _checked(
    coordinator: str, process_id: int, count: int, local_device: int | None, source: str
) -> HostSettings:
    if count < 1:
        raise UserError(f"--process-count {count}: must be 1 or more.")
    if not 0 <= process_id < count:
        raise UserError(
            f"--process-id {process_id}: must be from 0 to {count - 1}, because --process-count "
            f"is {count}."
        )
    if not re.fullmatch(r"(\[.+\]|[^:]+):\d{1,5}", coordinator):
        raise UserError(
            f"--coordinator {coordinator}: is not HOST:PORT. Use the address of process 0 and a "
            "free port, for example 10.0.0.1:29400."
        )
    settings = HostSettings(coordinator, process_id, count, local_device, source)
    if not 1 <= settings.port <= LAST_PORT:
        raise UserError(f"--coordinator {coordinator}: the port must be from 1 to {LAST_PORT}.")
    return settings


def _slurm_hosts(environment: Mapping[str, str]) -> HostSettings | None:
    """Return the tasks of ``srun``, one a host or one a GPU.

    With one task on each host, a task uses all visible devices. With more, a task uses the device
    with its SLURM_LOCALID, unless SLURM already shows it only one.
    """
    if not all(name in environment for name in SLURM_VARIABLES):
        return None
    job, hosts, count, process_id, local_id = (
        int(environment[name]) for name in SLURM_VARIABLES if name != "SLURM_STEP_NODELIST"
    )
    if count == 1:
        return None
    one_visible = re.fullmatch(r"[^,]+", environment.get("CUDA_VISIBLE_DEVICES", ""))
    local_device = None if count == hosts or one_visible else local_id
    coordinator = f"{first_host(environment['SLURM_STEP_NODELIST'])}:{FIRST_PORT + job % PORTS}"
    source = "from SLURM's variables; --process-count 1 ignores them"
    return _checked(coordinator, process_id, count, local_device, source)


def first_host(node_list: str) -> str:
    """Return the first host of a SLURM node list such as 'a1', 'a1,b2' or 'a[01-03,07],b2'."""
    name, _, rest = re.split(r",(?![^\[]*\])", node_list)[0].partition("[")
    return name + re.split(r"[-,\]]", rest)[0]


def _first(flag: int | None, variable: int | None) -> int | None:
    return variable if flag is None else flag


def _integer(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"\d+", text):
        raise UserError(f"{name}={text}: must be a whole number, 0 or more.")
    return int(text)
