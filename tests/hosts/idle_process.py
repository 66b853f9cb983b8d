"""A process of a run that meets the others and then only waits. Arguments: coordinator, number."""

import sys
import time

from rpn_jax.hosts.group import run_on_hosts
from rpn_jax.hosts.settings import HostFlags


def idle():
    print("idle", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    coordinator, number = sys.argv[1:]
    flags = HostFlags(coordinator, process_id=int(number), process_count=2, peer_timeout=10)
    sys.exit(run_on_hosts(flags, "cpu", idle))
