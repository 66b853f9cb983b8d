"""A trace of some steps, in a run that is long enough and in one that ends early."""

import io

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from rpn_jax.training.profile import profiled


@pytest.mark.parametrize("steps_of_the_run", [9, 4])
def test_a_trace_is_written_and_every_batch_is_yielded(tmp_path, steps_of_the_run):
    output = io.StringIO()
    console = Console(file=output, width=200)
    step = jax.jit(lambda x: (x @ x).sum())
    batches = profiled(iter(range(9)), tmp_path, steps=3, console=console)
    seen = []
    for number in batches:
        seen.append(number)
        step(jnp.ones((8, 8)))
        if len(seen) == steps_of_the_run:
            batches.close()
    assert seen == list(range(steps_of_the_run))
    [trace] = tmp_path.rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000
    assert f"a trace of 3 steps is in {tmp_path}" in output.getvalue()
