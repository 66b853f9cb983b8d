"""Only one run at a time uses a work directory."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rpn_jax.errors import UserError
from rpn_jax.training.lock import lock_workdir

HOLD = """
import sys, time, pathlib
from rpn_jax.training.lock import lock_workdir
with lock_workdir(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(60)
"""


def test_the_lock_excludes_other_runs_until_its_process_is_killed(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match="another run is training in it"),
            lock_workdir(tmp_path),
        ):
            pass
        other.send_signal(signal.SIGKILL)
    with lock_workdir(tmp_path):
        pass


def test_a_failed_run_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), lock_workdir(tmp_path):
        raise ValueError("broken")
    with lock_workdir(tmp_path):
        pass


def test_an_unwritable_lock_file_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.lock").mkdir()
    complaint = r"run\.lock: cannot be written \(Is a directory\)"
    with pytest.raises(UserError, match=complaint), lock_workdir(tmp_path):
        pass
