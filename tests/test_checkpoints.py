"""Checkpoints are exact, atomic and few."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rpn_jax.checkpoints import Checkpoints
from rpn_jax.config import Config, OptimConfig
from rpn_jax.errors import UserError
from rpn_jax.optim import make_optimizer
from rpn_jax.weights import load_variables, save_variables
from tests.made_variables import assert_bit_equal, variables_of

OPT_STATE = {"count": np.zeros((), np.int32)}


def optimizer_of(params: Any) -> optax.GradientTransformation:
    trainable = jax.tree.map(lambda _: True, params)
    trainable["backbone"]["conv1"]["kernel"] = False
    return make_optimizer(OptimConfig(clip_norm=1.0), optax.constant_schedule(0.1), trainable)


def trained(variables: Any, opt_state: Any, steps: int) -> tuple[Any, Any]:
    """A few steps with gradients that depend on the parameters."""
    optimizer = optimizer_of(variables["params"])
    params = variables["params"]
    for _ in range(steps):
        updates, opt_state = optimizer.update(jax.tree.map(jnp.sin, params), opt_state, params)
        params = optax.apply_updates(params, updates)
    return variables | {"params": params}, opt_state


def steps_in(workdir: Path) -> list[int]:
    return sorted(int(entry.name) for entry in (workdir / "checkpoints").iterdir())


def test_a_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    variables = variables_of(0)
    opt_state = optimizer_of(variables["params"]).init(variables["params"])
    variables, opt_state = trained(variables, opt_state, steps=2)
    with Checkpoints(tmp_path / "run", keep_last=2) as checkpoints:
        assert checkpoints.restore_latest(variables, opt_state) is None
        assert checkpoints.latest_step() is None
        checkpoints.save(2, variables, opt_state, None)
    shapes = jax.eval_shape(lambda: (variables, opt_state))
    with Checkpoints(tmp_path / "run", keep_last=2) as checkpoints:
        restored = checkpoints.restore_latest(*shapes)
    assert restored is not None
    step, *state = restored
    assert step == 2
    assert_bit_equal(state[0], variables)
    assert_bit_equal(state[1], opt_state)
    assert_bit_equal(trained(*state, steps=2), trained(variables, opt_state, steps=2))


def test_what_happens_to_the_arrays_after_a_save_changes_nothing(tmp_path: Path) -> None:
    variables, expected = variables_of(0), variables_of(0)
    donated = jnp.arange(1000.0)
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(1, variables, {"momentum": donated}, None)
        for leaf in jax.tree.leaves(variables):
            leaf[...] = np.nan
        donated.delete()
        checkpoints.wait()
        restored = checkpoints.restore_latest(variables, {"momentum": np.zeros(1000)})
    assert restored is not None
    assert_bit_equal(restored[1], expected)
    np.testing.assert_array_equal(restored[2]["momentum"], np.arange(1000))


@pytest.mark.parametrize(
    ("figures", "keep_last", "kept", "best"),
    [
        ([0.5, 0.1, 0.2, 0.3], 2, [1, 3, 4], 1),
        ([0.1, 0.2, 0.5, 0.3], 2, [3, 4], 3),
        ([0.1, 0.4, None, None, None], 2, [2, 4, 5], 2),
        ([None, None, None], 2, [2, 3], 3),
        ([0.5, 0.5, None], 1, [2, 3], 2),
        ([0.1], 3, [1], 1),
    ],
)
def test_the_last_and_the_best_are_kept_and_the_best_is_loaded(
    tmp_path: Path, figures: list[float | None], keep_last: int, kept: list[int], best: int
) -> None:
    for step, figure in enumerate(figures, start=1):
        # Opened anew each time: what was the best must be read from the disk.
        with Checkpoints(tmp_path, keep_last) as checkpoints:
            metrics = None if figure is None else {"AR@100": 1 - figure, "AR@1000": figure}
            checkpoints.save(step, variables_of(step), OPT_STATE, metrics)
    assert steps_in(tmp_path) == kept
    assert_bit_equal(load_variables(tmp_path), variables_of(best))
    last = len(figures)
    assert_bit_equal(load_variables(tmp_path / "checkpoints" / str(last)), variables_of(last))


def test_a_step_that_was_passed_is_refused(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        checkpoints.save(5, variables_of(0), OPT_STATE, None)
        checkpoints.wait()
        for step in (4, 5):
            with pytest.raises(UserError, match=f"step {step} is not above the last one there, 5"):
                checkpoints.save(step, variables_of(0), OPT_STATE, None)


KILLED_RUN = """
import os, sys
from pathlib import Path
import numpy as np
from rpn_jax.checkpoints import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]), keep_last=1)
opt_state = {"count": np.zeros((), np.int32)}
checkpoints.save(1, {"params": {"kernel": np.ones(10, np.float32)}}, opt_state, None)
checkpoints.wait()
rng = np.random.default_rng(0)
large = {"params": {"kernel": rng.random(3_000_000, np.float32)}}
checkpoints.save(2, large, opt_state, None)
os.kill(os.getpid(), 9)
"""


def test_a_killed_run_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    process = subprocess.run([sys.executable, "-c", KILLED_RUN, tmp_path], cwd=root, check=False)
    assert process.returncode == -9
    # A later step is there only if it is whole; mostly it is not, and the first one still is.
    found = load_variables(tmp_path)["params"]["kernel"]
    assert found.shape in ((10,), (3_000_000,))
    assert np.isfinite(found).all()
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(3, variables_of(3), OPT_STATE, None)
    assert steps_in(tmp_path) == [3]


def test_a_half_written_step_is_not_seen_and_is_cleared_away(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        checkpoints.save(1, variables_of(1), OPT_STATE, None)
    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    (half / "variables").mkdir(parents=True)
    assert_bit_equal(load_variables(tmp_path), variables_of(1))
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        assert checkpoints.latest_step() == 1
        checkpoints.save(2, variables_of(2), OPT_STATE, None)
    assert steps_in(tmp_path) == [1, 2]


def test_a_checkpoint_of_another_model_or_optimizer_is_refused(tmp_path: Path) -> None:
    variables = variables_of(0)
    opt_state = optimizer_of(variables["params"]).init(variables["params"])
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(1, variables, opt_state, None)
        checkpoints.wait()
        other = variables_of(0)
        other["params"]["rpn_head"]["rpn_cls"]["bias"] = np.zeros(5)
        with pytest.raises(UserError, match=r"rpn_head.rpn_cls.bias has shape \(3,\)"):
            checkpoints.restore_latest(other, opt_state)
        with pytest.raises(UserError, match=r"is of another config: .* is unexpected"):
            checkpoints.restore_latest(variables, {})


def test_an_unwritable_work_directory_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"folder .*run: cannot be written") as error:
        Checkpoints(tmp_path / "file" / "run", keep_last=1)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be written"):
        save_variables(tmp_path / "file" / "weights", Config(), variables_of(0))


def test_orbax_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(1, variables_of(0), OPT_STATE, None)
    load_variables(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_metrics_are_readable_json_beside_the_weights(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(1, variables_of(0), OPT_STATE, {"AR@1000": 0.5})
    stored = tmp_path / "checkpoints" / "1" / "metrics" / "metrics"
    assert json.loads(stored.read_text()) == {"AR@1000": 0.5}
