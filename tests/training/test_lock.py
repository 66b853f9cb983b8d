"""One run at a time in a work directory."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rpn_jax.errors import UserError
from rpn_jax.training.lock import only_run

HOLD = "import sys, time, pathlib\nfrom rpn_jax.training.lock import only_run\n" + (
    "with only_run(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


def test_a_run_keeps_out_others_until_it_ends_even_killed(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run is training in it"), only_run(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
    with only_run(tmp_path):
        pass


def test_a_run_that_failed_leaves_its_directory_free(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), only_run(tmp_path):
        raise ValueError("broken")
    with only_run(tmp_path):
        pass


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.lock").mkdir()
    complaint = r"run\.lock: cannot be written \(Is a directory\)"
    with pytest.raises(UserError, match=complaint), only_run(tmp_path):
        pass
