"""Which processes take part: flags, environment variables and SLURM's variables."""

import pytest

from rpn_jax.errors import UserError
from rpn_jax.hosts.settings import HostFlags, find_hosts, first_host

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
VARIABLES = {
    "RPN_JAX_COORDINATOR": "10.0.0.1:29400",
    "RPN_JAX_PROCESS_ID": "1",
    "RPN_JAX_PROCESS_COUNT": "2",
}


def test_one_process_is_the_default():
    assert find_hosts(HostFlags(), {}) is None
    assert find_hosts(HostFlags(process_count=1), SLURM) is None
    assert find_hosts(HostFlags(), {**SLURM, "SLURM_NTASKS": "1"}) is None
    outside_of_srun = {name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")}
    assert find_hosts(HostFlags(), outside_of_srun) is None


def test_flags_come_before_variables_and_variables_before_slurm():
    found = find_hosts(HostFlags(), VARIABLES | SLURM)
    assert (found.coordinator, found.process_id, found.process_count) == ("10.0.0.1:29400", 1, 2)
    assert found.local_device is None
    found = find_hosts(HostFlags(coordinator="host:1", process_id=0), VARIABLES)
    assert (found.coordinator, found.process_id, found.process_count) == ("host:1", 0, 2)


@pytest.mark.parametrize(
    ("changes", "local_device"),
    [
        ({}, 1),  # One task on each GPU.
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "5"}, None),  # SLURM shows each task its own GPU.
        ({"SLURM_STEP_NUM_NODES": "4"}, None),  # One task on each host.
    ],
)
def test_slurm(changes, local_device):
    found = find_hosts(HostFlags(), SLURM | changes)
    assert (found.coordinator, found.process_id, found.process_count) == ("gpu03:61441", 3, 4)
    assert found.local_device == local_device


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a1", "a1"),
        ("a1,b2", "a1"),
        ("a[01-03,07],b2", "a01"),
        ("a-b[7,9]", "a-b7"),
        ("a,b[1]", "a"),
    ],
)
def test_first_host_of_a_slurm_list(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("flags", "variables", "message"),
    [
        (HostFlags(process_count=2, process_id=0), {}, "--coordinator: is missing"),
        (HostFlags(coordinator="host:1", process_count=2), {}, "--process-id: is missing"),
        (HostFlags(process_id=0), {}, "--coordinator: is missing"),
        (HostFlags("host:1", 2, 2), {}, r"--process-id 2: must be from 0 to 1"),
        (HostFlags("host:1", 0, 0), {}, "--process-count 0: must be 1 or more"),
        (HostFlags("host", 0, 2), {}, r"--coordinator host: is not HOST:PORT"),
        (HostFlags("host:0", 0, 2), {}, r"--coordinator host:0: the port must be from 1 to 65535"),
        (HostFlags("host:99999", 0, 2), {}, r"host:99999: the port must be from 1 to 65535"),
        (HostFlags(), VARIABLES | {"RPN_JAX_PROCESS_ID": "x"}, "RPN_JAX_PROCESS_ID=x: must be a"),
        (HostFlags(peer_timeout=0), {}, "--peer-timeout 0: must be 1 second or more"),
    ],
)
def test_wrong_values_are_refused(flags, variables, message):
    with pytest.raises(UserError, match=message):
        find_hosts(flags, variables)
