"""Checkpoints: exact values, complete or absent, and a limited number of them."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rpn_jax.config import Config, OptimConfig
from rpn_jax.errors import UserError
from rpn_jax.training.optim import make_optimizer
from rpn_jax.weights.checkpoints import (
    Checkpoints,
    Saved,
    best_step_folder,
    last_saved,
    restore_newest,
    set_aside,
)
from rpn_jax.weights.folders import load_variables, save_variables
from rpn_jax.weights.trees import write_item
from tests.made_variables import assert_bit_equal, variables_of

OPT_STATE = {"count": np.zeros((), np.int32)}


def optimizer_of(params: Any) -> optax.GradientTransformation:
    trainable = jax.tree.map(lambda _: True, params)
    trainable["backbone"]["conv1"]["kernel"] = False
    return make_optimizer(OptimConfig(clip_norm=1.0), optax.constant_schedule(0.1), trainable)


def trained(variables: Any, opt_state: Any, steps: int) -> tuple[Any, Any]:
    """Train a few steps with gradients that depend on the parameters."""
    optimizer = optimizer_of(variables["params"])
    params = variables["params"]
    for _ in range(steps):
        updates, opt_state = optimizer.update(jax.tree.map(jnp.sin, params), opt_state, params)
        params = optax.apply_updates(params, updates)
    return variables | {"params": params}, opt_state


def save(checkpoints: Checkpoints, step: int, metrics: dict[str, float] | None) -> None:
    """Save the variables of a step, and the figures of their evaluation."""
    checkpoints.save(step, variables_of(step), OPT_STATE)
    if metrics is not None:
        checkpoints.add_metrics(step, metrics)


def steps_in(workdir: Path) -> list[int]:
    return sorted(int(entry.name) for entry in (workdir / "checkpoints").iterdir())


def test_a_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    variables = variables_of(0)
    opt_state = optimizer_of(variables["params"]).init(variables["params"])
    variables, opt_state = trained(variables, opt_state, steps=2)
    with Checkpoints(
        tmp_path / "run", keep_last=2, epoch_steps=3, best_by="AR@1000"
    ) as checkpoints:
        assert last_saved(tmp_path / "run") is None
        checkpoints.save(2, variables, opt_state)
    shapes = jax.eval_shape(lambda: (variables, opt_state))
    assert last_saved(tmp_path / "run") == Saved(2, epoch_steps=3, evaluated=False)
    restored = restore_newest(tmp_path / "run", *shapes)
    state = (restored.variables, restored.opt_state)
    assert_bit_equal(state[0], variables)
    assert_bit_equal(state[1], opt_state)
    assert_bit_equal(trained(*state, steps=2), trained(variables, opt_state, steps=2))


def test_changing_the_arrays_after_a_save_does_not_change_the_checkpoint(tmp_path: Path) -> None:
    variables, expected = variables_of(0), variables_of(0)
    donated = jnp.arange(1000.0)
    with Checkpoints(tmp_path, keep_last=1, epoch_steps=3, best_by="AR@1000") as checkpoints:
        checkpoints.save(1, variables, {"momentum": donated})
        for leaf in jax.tree.leaves(variables):
            leaf[...] = np.nan
        donated.delete()
    restored = restore_newest(tmp_path, variables, {"momentum": np.zeros(1000)})
    assert_bit_equal(restored.variables, expected)
    np.testing.assert_array_equal(restored.opt_state["momentum"], np.arange(1000))


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
        # Opened again for each step, so that the best one is read from the disk.
        with Checkpoints(tmp_path, keep_last, epoch_steps=3, best_by="AR@1000") as checkpoints:
            metrics = None if figure is None else {"AR@100": 1 - figure, "AR@1000": figure}
            save(checkpoints, step, metrics)
    assert steps_in(tmp_path) == kept
    assert_bit_equal(load_variables(tmp_path), variables_of(best))
    last = len(figures)
    assert_bit_equal(load_variables(tmp_path / "checkpoints" / str(last)), variables_of(last))


def test_a_step_that_is_not_above_the_last_one_is_an_error(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep_last=2, epoch_steps=3, best_by="AR@1000") as checkpoints:
        checkpoints.save(5, variables_of(0), OPT_STATE)
        for step in (4, 5):
            with pytest.raises(UserError, match=f"step {step} is not above the last saved step, 5"):
                checkpoints.save(step, variables_of(0), OPT_STATE)


KILLED_RUN = """
import os, sys
from pathlib import Path
import numpy as np
from rpn_jax.weights.checkpoints import Checkpoints
opt_state = {"count": np.zeros((), np.int32)}
with Checkpoints(Path(sys.argv[1]), keep_last=1, epoch_steps=3, best_by="AR@1000") as checkpoints:
    checkpoints.save(1, {"params": {"kernel": np.ones(10, np.float32)}}, opt_state)
checkpoints = Checkpoints(Path(sys.argv[1]), keep_last=1, epoch_steps=3, best_by="AR@1000")
rng = np.random.default_rng(0)
large = {"params": {"kernel": rng.random(3_000_000, np.float32)}}
checkpoints.save(2, large, opt_state)
os.kill(os.getpid(), 9)
"""


def test_a_killed_run_leaves_a_complete_checkpoint(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run([sys.executable, "-c", KILLED_RUN, tmp_path], cwd=root, check=False)
    assert process.returncode == -9
    # Step 2 exists only if it is complete. Usually it is not, and the last one is step 1.
    found = load_variables(tmp_path)["params"]["kernel"]
    assert found.shape in ((10,), (3_000_000,))
    assert np.isfinite(found).all()
    with Checkpoints(tmp_path, keep_last=1, epoch_steps=3, best_by="AR@1000") as checkpoints:
        checkpoints.save(3, variables_of(3), OPT_STATE)
    assert steps_in(tmp_path) == [3]


def test_an_incomplete_step_is_ignored_and_removed(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep_last=2, epoch_steps=3, best_by="AR@1000") as checkpoints:
        checkpoints.save(1, variables_of(1), OPT_STATE)
    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    (half / "variables").mkdir(parents=True)
    assert_bit_equal(load_variables(tmp_path), variables_of(1))
    with Checkpoints(tmp_path, keep_last=2, epoch_steps=3, best_by="AR@1000") as checkpoints:
        assert last_saved(tmp_path) == Saved(1, epoch_steps=3, evaluated=False)
        checkpoints.save(2, variables_of(2), OPT_STATE)
    assert steps_in(tmp_path) == [1, 2]


def test_a_checkpoint_of_another_model_or_optimizer_is_an_error(tmp_path: Path) -> None:
    variables = variables_of(0)
    opt_state = optimizer_of(variables["params"]).init(variables["params"])
    with Checkpoints(tmp_path, keep_last=1, epoch_steps=3, best_by="AR@1000") as checkpoints:
        checkpoints.save(1, variables, opt_state)
    other = variables_of(0)
    other["params"]["rpn_head"]["rpn_cls"]["bias"] = np.zeros(5)
    with pytest.raises(UserError, match=r"'rpn_head.rpn_cls.bias' has shape \(3,\)"):
        restore_newest(tmp_path, other, opt_state)
    with pytest.raises(UserError, match=r"does not match the config: .* is unexpected"):
        restore_newest(tmp_path, variables, {})


def test_an_unwritable_work_directory_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"folder .*checkpoints: cannot be written") as error:
        Checkpoints(tmp_path / "file" / "run", keep_last=1, epoch_steps=3, best_by="AR@1000")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be written"):
        save_variables(tmp_path / "file" / "weights", Config(), variables_of(0))


def test_an_unreadable_work_directory_is_an_error_of_one_line(
    tmp_path: Path, forbid: Callable[[Path], None]
) -> None:
    forbid(tmp_path)
    with pytest.raises(
        UserError, match=rf"^work directory {tmp_path}: cannot be read \(Permission"
    ):
        last_saved(tmp_path)


def test_an_unwritable_checkpoints_folder_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UserError, match=r"folder .*checkpoints: cannot be written"):
        Checkpoints(tmp_path, keep_last=1, epoch_steps=3, best_by="AR@1000")


FAILING_RUN = """
import resource, shutil, sys
from pathlib import Path
import numpy as np
from rpn_jax.weights.checkpoints import Checkpoints
from rpn_jax.errors import exit_code

def command(workdir, failure):
    rng = np.random.default_rng(0)
    large = {"params": {name: rng.random(1_000_000, np.float32) for name in "abcdef"}}
    opt_state = {"count": np.zeros((), np.int32)}
    with Checkpoints(workdir, keep_last=1, epoch_steps=3, best_by="AR@1000") as checkpoints:
        checkpoints.save(1, large, opt_state)
    with Checkpoints(workdir, keep_last=1, epoch_steps=3, best_by="AR@1000") as checkpoints:
        if failure == "folder lost":
            shutil.rmtree(workdir / "checkpoints")
            (workdir / "checkpoints").touch()
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        checkpoints.save(2, large, opt_state)
        if failure == "disk full at the next save":
            checkpoints.save(3, large, opt_state)
    return 0

sys.exit(exit_code(lambda: command(Path(sys.argv[1]), sys.argv[2])))
"""


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        ("folder lost", "Not a directory"),
        ("disk full", "File too large"),
        ("disk full at the next save", "File too large"),
    ],
)
def test_a_failed_save_prints_one_line_and_ends_the_process(
    tmp_path: Path, failure: str, cause: str
) -> None:
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run(
        [sys.executable, "-c", FAILING_RUN, tmp_path, failure],
        cwd=root,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.stdout == ""
    assert process.stderr.count("\n") == 1
    assert f"checkpoints {tmp_path / 'checkpoints'}: cannot be written (" in process.stderr
    assert cause in process.stderr
    assert process.returncode == 2
    if failure != "folder lost":
        assert load_variables(tmp_path)["params"]["a"].shape == (1_000_000,)


READING = """
import sys
from pathlib import Path
from rpn_jax.errors import exit_code
from rpn_jax.weights.folders import load_variables
sys.exit(exit_code(lambda: load_variables(Path(sys.argv[1])) and 0))
"""


def test_damaged_arrays_are_an_error_of_one_line(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep_last=1, epoch_steps=3, best_by="AR@1000") as checkpoints:
        checkpoints.save(1, variables_of(0), OPT_STATE)
    for file in (tmp_path / "checkpoints" / "1" / "variables").rglob("d/*"):
        file.write_bytes(b"broken")
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run(
        [sys.executable, "-c", READING, tmp_path],
        cwd=root,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.stderr.count("\n") == 1
    assert "is damaged and cannot be read" in process.stderr
    assert process.returncode == 2


def test_damaged_metrics_and_records_are_errors(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep_last=1, epoch_steps=3, best_by="AR@1000") as checkpoints:
        save(checkpoints, 1, {"AR@1000": 0.5})
    step = tmp_path / "checkpoints" / "1"
    for content in ("{broken", "[]", '{"AR@1000": 0.6, "checksum": 1}'):
        (step / "metrics" / "metrics").write_text(content)
        for read in (last_saved, best_step_folder):
            with pytest.raises(UserError, match="contains damaged metrics"):
                read(tmp_path)
        with pytest.raises(UserError, match="contains damaged metrics"):
            Checkpoints(tmp_path, keep_last=1, epoch_steps=3, best_by="AR@1000")
    shutil.rmtree(step / "metrics")
    (step / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(UserError, match=r"checkpoints/1: is damaged .*No such file"):
        last_saved(tmp_path)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory with the evaluated checkpoints 1 and 2, of `variables_of` their step."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(workdir, keep_last=2, epoch_steps=3, best_by="AR@1000") as checkpoints:
        for step in (1, 2):
            save(checkpoints, step, {"AR@1000": step / 10})
    return workdir


def flip_one_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damages_of(file: Path) -> list[tuple[str, Callable[[Path], None]]]:
    positions = sorted({int(share * file.stat().st_size) for share in (0.0, 0.5, 0.95)})
    flips = [
        (f"byte {position} flipped", functools.partial(flip_one_byte, position=position))
        for position in positions
    ]
    return [*flips, ("truncated", truncate), ("removed", Path.unlink)]


def test_no_damage_of_the_newest_checkpoint_gives_wrong_weights(
    two_checkpoints: Path, tmp_path: Path
) -> None:
    """Each file of the newest checkpoint: three bytes flipped one at a time, truncated, removed."""
    shapes = (variables_of(0), OPT_STATE)
    newest = two_checkpoints / "checkpoints" / "2"
    files = [path.relative_to(two_checkpoints) for path in newest.rglob("*") if path.is_file()]
    assert len(files) >= 8
    outcomes: list[tuple[str, str, dict[int, str]]] = []
    for file in files:
        for number, (kind, damage) in enumerate(damages_of(two_checkpoints / file)):
            workdir = tmp_path / f"{len(outcomes)}_{number}"
            shutil.copytree(two_checkpoints, workdir)
            damage(workdir / file)
            restored = restore_newest(workdir, *shapes)
            # A damaged step is skipped. A step that is used has the right arrays.
            assert restored.saved == Saved(restored.saved.step, epoch_steps=3, evaluated=True)
            assert_bit_equal(restored.variables, variables_of(restored.saved.step))
            assert_bit_equal(restored.opt_state, OPT_STATE)
            outcomes.append((str(file), kind, restored.damaged))
    detected = [entry for entry in outcomes if entry[2]]
    for _, _, damaged in detected:
        assert list(damaged) == [2]
        assert "damaged" in damaged[2]
        assert "\n" not in damaged[2]
    print(f"{len(detected)} of {len(outcomes)} kinds of damage detected, the others harmless")
    assert len(detected) > len(outcomes) / 4  # Orbax keeps files that it does not read again.


def test_a_flipped_byte_in_the_record_is_detected(two_checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(two_checkpoints, tmp_path / "run")
    record = tmp_path / "run" / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    content = record.read_text()
    record.write_text(content.replace('"epoch_steps": 3', '"epoch_steps": 7'))
    assert record.read_text() != content
    assert last_saved(tmp_path / "run") == Saved(1, epoch_steps=3, evaluated=True)
    with pytest.raises(UserError, match="is damaged, its record was changed"):
        load_variables(tmp_path / "run" / "checkpoints" / "2")


def test_weights_with_a_wrong_checksum_are_refused(two_checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(two_checkpoints, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "2"
    shutil.rmtree(step / "variables")
    other = variables_of(2)
    other["params"]["rpn_head"]["rpn_cls"]["bias"][0] += 1e-6
    write_item(step / "variables", other)
    with pytest.raises(UserError, match=r"'params.rpn_head.rpn_cls.bias' is not as it was saved"):
        load_variables(step)


def test_a_run_without_an_intact_checkpoint_is_an_error(
    two_checkpoints: Path, tmp_path: Path
) -> None:
    shutil.copytree(two_checkpoints, tmp_path / "run")
    for step in ("1", "2"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / step / "variables")
    with pytest.raises(UserError, match=r"2.*damaged.*No other checkpoint is left\. Start again"):
        restore_newest(tmp_path / "run", variables_of(0), OPT_STATE)
    for step in ("1", "2"):
        (tmp_path / "run" / "checkpoints" / step / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(UserError, match=r"checkpoints/2: is damaged"):
        last_saved(tmp_path / "run")


def test_a_checkpoint_set_aside_can_be_saved_again(two_checkpoints: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(two_checkpoints, workdir)
    for number in range(2):
        assert set_aside(workdir, 2) == workdir / "damaged" / f"2_{number}"
        assert last_saved(workdir) == Saved(1, epoch_steps=3, evaluated=True)
        with Checkpoints(workdir, keep_last=2, epoch_steps=3, best_by="AR@1000") as checkpoints:
            save(checkpoints, 2, None)
        assert last_saved(workdir) == Saved(2, epoch_steps=3, evaluated=False)


def test_the_time_of_a_save_is_stored(tmp_path: Path) -> None:
    before = time.time()
    with Checkpoints(tmp_path, keep_last=2, epoch_steps=3, best_by="AR@1000") as checkpoints:
        save(checkpoints, 1, None)
    saved = last_saved(tmp_path)
    assert saved is not None
    assert before <= saved.saved_at <= time.time()


def test_metrics_of_a_later_evaluation_select_the_best(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep_last=1, epoch_steps=3, best_by="AR@1000") as checkpoints:
        save(checkpoints, 1, {"AR@1000": 0.1})
        checkpoints.save(2, variables_of(2), OPT_STATE)
    assert best_step_folder(tmp_path).name == "1"
    with Checkpoints(tmp_path, keep_last=1, epoch_steps=3, best_by="AR@1000") as checkpoints:
        checkpoints.add_metrics(2, {"AR@1000": 0.5})
        assert last_saved(tmp_path) == Saved(2, epoch_steps=3, evaluated=True)
        assert best_step_folder(tmp_path).name == "2"
        save(checkpoints, 3, {"AR@1000": 0.3})
    assert steps_in(tmp_path) == [2, 3]


def test_another_figure_can_select_the_best(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep_last=1, epoch_steps=3, best_by="AP") as checkpoints:
        for step, (recall, precision) in enumerate([(0.9, 0.1), (0.1, 0.5), (0.5, 0.2)], start=1):
            metrics = {"AR@1000": recall, "AP": precision}
            save(checkpoints, step, metrics)
    assert steps_in(tmp_path) == [2, 3]
    assert best_step_folder(tmp_path).name == "2"


def test_the_best_of_a_run_of_version_0_1_is_found(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep_last=1, epoch_steps=3, best_by="AR@1000") as checkpoints:
        save(checkpoints, 1, {"AR@1000": 0.5})
        save(checkpoints, 2, {"AR@1000": 0.1})
    for step in steps_in(tmp_path):
        path = tmp_path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA"
        metadata = json.loads(path.read_text())
        for key in ("best_by", "saved_at", "checksums", "checksum"):
            del metadata["custom_metadata"][key]
        path.write_text(json.dumps(metadata))
    assert best_step_folder(tmp_path).name == "1"


def test_orbax_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Checkpoints(tmp_path, keep_last=1, epoch_steps=3, best_by="AR@1000") as checkpoints:
        checkpoints.save(1, variables_of(0), OPT_STATE)
    load_variables(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_metrics_are_stored_as_json(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep_last=1, epoch_steps=3, best_by="AR@1000") as checkpoints:
        save(checkpoints, 1, {"AR@1000": 0.5})
    stored = tmp_path / "checkpoints" / "1" / "metrics" / "metrics"
    metrics = json.loads(stored.read_text())
    assert isinstance(metrics.pop("checksum"), int)
    assert metrics == {"AR@1000": 0.5}
