"""Proposals of many pictures on a local Ray with two workers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from rpn_jax import Proposer, init_variables
from rpn_jax.cli import main
from rpn_jax.config import save_config
from rpn_jax.errors import UserError
from rpn_jax.inference import ray_engine
from rpn_jax.weights.folders import save_variables

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
pyarrow = pytest.importorskip("pyarrow")

ROOT = Path(__file__).resolve().parents[2]
PICTURES = 11


def paths_in(folder):
    return [folder / f"{number:02}.jpg" for number in range(PICTURES)]


@pytest.fixture(scope="module")
def folder(tiny_config, tmp_path_factory):
    """A config, weights, and pictures of which two are broken, with a Parquet file of the list."""
    folder = tmp_path_factory.mktemp("ray")
    save_config(tiny_config, folder / "tiny.json")
    save_variables(folder / "weights", tiny_config, init_variables(tiny_config, seed=0))
    rng = np.random.default_rng(0)
    paths = paths_in(folder)
    for path in paths:
        assert cv2.imwrite(str(path), rng.integers(0, 255, (60, 64, 3), np.uint8))
    paths[3].write_text("no picture")
    paths[6].write_bytes(paths[6].read_bytes()[:1000])  # Its header is whole.
    parquet.write_table(pyarrow.table({"path": list(map(str, paths))}), folder / "list.parquet")
    return folder


def run(folder, out, *kill):
    inputs = [folder / "tiny.json", folder / "weights", folder / "list.parquet", out, *kill]
    program = [sys.executable, "-m", "tests.inference.ray_program", *map(str, inputs)]
    # Ray starts its workers in the folder of the program.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_killed_work_continues_and_broken_pictures_become_rows(folder, tiny_config, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'rpn-jax[ray]'")
    killed = run(folder, tmp_path, "kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    output = tmp_path / "proposals.parquet"
    before = {path: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    assert before
    done = run(folder, tmp_path)
    assert done.returncode == 0, done.stderr
    # A worker can finish another file after its program was killed.
    continued = re.search(rf"continuing after (\d+) of {PICTURES}", done.stdout)
    assert continued, done.stdout
    assert int(continued[1]) >= min(2 * len(before), PICTURES)
    assert f"results of {PICTURES} pictures are in" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    rows = parquet.read_table(output).to_pylist()
    paths = list(map(str, paths_in(folder)))
    assert [row["path"] for row in rows] == paths
    broken = {number: rows[number]["error"] for number in range(PICTURES) if rows[number]["error"]}
    assert broken == {
        3: f"{paths[3]}: is not a picture",
        6: f"{paths[6]}: is not a picture that OpenCV can read",
    }
    assert rows[3]["boxes_xyxy"] is rows[6]["scores"] is None
    whole = [number for number in range(PICTURES) if number not in broken]
    expected = Proposer.load(folder / "weights")([paths[number] for number in whole])
    for number, proposals in zip(whole, expected, strict=True):
        np.testing.assert_array_equal(rows[number]["boxes_xyxy"], proposals.boxes_xyxy)
        np.testing.assert_array_equal(np.float32(rows[number]["scores"]), proposals.scores)


def test_the_list_comes_from_files_folders_and_parquet(folder, tmp_path):
    paths = ray_engine.list_paths([str(folder), str(folder / "list.parquet"), "https://a.b/c.png"])
    assert paths == [*map(str, paths_in(folder)), "https://a.b/c.png"]
    parquet.write_table(pyarrow.table({"file": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet: has no column 'path', only file\."):
        ray_engine.list_paths([str(tmp_path / "a.parquet")])
    (tmp_path / "b.parquet").write_text("nothing")
    with pytest.raises(UserError, match=r"b.parquet: is not a Parquet file"):
        ray_engine.list_paths([str(tmp_path / "b.parquet")])
    with pytest.raises(UserError, match="c.parquet: cannot be read"):
        ray_engine.list_paths([str(tmp_path / "c.parquet")])
    name = tmp_path / os.fsdecode(b"\xff.png")
    name.touch()
    with pytest.raises(UserError, match=r"--engine ray: the name is not UTF-8\. Rename it\."):
        ray_engine.list_paths([str(name)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engine", "ray", "--draw", "3"], "--draw: not with --engine ray"),
        (["--engine", "ray", "--exact-padding"], "--exact-padding: not with --engine ray"),
        (["--engine", "ray", "--ray-workers", "0"], "--ray-workers 0: must be 1 or more"),
        (["--ray-workers", "2"], "--ray-workers 2: must be 1 or more, with --engine ray"),
    ],
)
def test_flags_that_do_not_go_together(folder, tmp_path, capsys, flags, message):
    words = ["propose", str(folder), "--weights", str(folder / "weights"), "--out", str(tmp_path)]
    assert main([*words, *flags]) == 2
    assert message in capsys.readouterr().err


def test_without_ray_one_line_says_what_to_install(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["propose", str(folder), "--weights", str(folder / "weights"), "--out", str(tmp_path)]
    assert main([*words, "--engine", "ray"]) == 2
    assert "--engine ray: needs Ray Data: pip install 'rpn-jax[ray]'" in capsys.readouterr().err
