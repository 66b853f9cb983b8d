"""Long work with bounded memory that continues where it was stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from rpn_jax import init_variables
from rpn_jax.config import save_config
from rpn_jax.console import make_console
from rpn_jax.data.annotated_files import AnnotatedFiles
from rpn_jax.data.dataset import Picture
from rpn_jax.data.files import PictureFiles
from rpn_jax.data.views import View
from rpn_jax.errors import UserError
from rpn_jax.inference import command, stream
from rpn_jax.inference.part_file import open_part_file
from rpn_jax.inference.results import picture_proposals
from rpn_jax.inference.results_file import proposal_rows
from rpn_jax.structures import Proposals
from rpn_jax.weights.folders import save_variables

ROOT = Path(__file__).resolve().parents[2]
BOXES = 500


def fake_propose(prepared, images, image_sizes, scale_factors):
    """Return proposals that depend on the pixels of each picture."""
    size = len(images)
    seed = np.asarray(images).reshape(size, -1).sum(axis=1)[:, None] % 97
    corners = (seed + np.arange(BOXES) % 31).astype(np.float32)
    return Proposals(
        boxes=np.stack([corners, corners, corners + 2.5, corners + 7], axis=2),
        scores=np.broadcast_to(np.linspace(1, 0.1, BOXES, dtype=np.float32), (size, BOXES)),
        valid=np.ones((size, BOXES), bool),
    )


@pytest.fixture
def use_fake(monkeypatch):
    monkeypatch.setattr(stream, "prepare_variables", lambda *arguments: {})


def run(config, dataset, path, min_score=0.0, function=fake_propose):
    variables = {"params": {"kernel": np.ones(3, np.float32)}}
    with stream.part_file_of(path, config, variables, dataset, min_score) as part:
        stream.stream_results(
            function,
            variables,
            dataset,
            config,
            picture_proposals,
            proposal_rows,
            part,
            "proposing",
            make_console(),
        )
        stream.write_final(path, part)


def arrays(count):
    rng = np.random.default_rng(0)
    shapes = [(20, 30, 3), (30, 20, 3)]
    return PictureFiles([rng.integers(0, 255, shapes[i % 2], np.uint8) for i in range(count)])


@pytest.fixture
def config(tiny_config):
    """Pictures of both orientations, which have different canvases."""
    return with_data(tiny_config, scale=(96, 64))


def with_data(config, **changes):
    return replace(config, data=replace(config.data, **changes))


class StopsAfter:
    """A forward pass that is interrupted after some batches."""

    def __init__(self, batches):
        self.left = batches

    def __call__(self, *arguments):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return fake_propose(*arguments)


def test_memory_does_not_grow_with_the_number_of_pictures(config, tmp_path, use_fake):
    config = with_data(config, loader_threads=2, eval_batch_size=4)
    run(config, arrays(8), tmp_path / "first.json")  # what is allocated once
    peaks = []
    for count in (40, 240):
        dataset = arrays(count)
        tracemalloc.start()
        run(config, dataset, tmp_path / f"{count}.json")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "240.json").stat().st_size > 200 * BOXES * 50
    # The results of a picture are 10 kB as arrays and 50 kB as text.
    assert peaks[1] - peaks[0] < 200 * 2_000


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_interrupted_work_continues_after_the_last_whole_batch(
    config, tmp_path, use_fake, batches, capsys
):
    dataset = arrays(9)
    run(config, dataset, tmp_path / "whole.json")
    path = tmp_path / "stopped.json"
    with pytest.raises(KeyboardInterrupt):
        run(config, dataset, path, function=StopsAfter(batches))
    assert not path.exists()
    left = StopsAfter(100)
    run(config, dataset, path, function=left)
    assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["stopped.json", "whole.json"]
    # 3 batches hold upright pictures and 2 the others. One batch is in flight when it stops.
    assert 100 - left.left == 5 - (batches - 1)
    said = capsys.readouterr().out
    assert ("continuing after" in said) == (batches > 1)


def test_results_are_in_the_order_of_the_pictures(config, tmp_path, use_fake):
    run(config, arrays(7), tmp_path / "a.json")
    results = json.loads((tmp_path / "a.json").read_text())
    assert [result["image_id"] for result in results] == np.repeat(range(1, 8), BOXES).tolist()


def test_unfinished_results_of_other_work_are_refused(config, tmp_path, use_fake):
    path, dataset = tmp_path / "a.json", arrays(9)
    with pytest.raises(KeyboardInterrupt):
        run(config, dataset, path, function=StopsAfter(3))
    before = (tmp_path / "a.part.jsonl").read_bytes()
    proposals = replace(config.rpn_proposals, max_proposals=7)
    for other, pictures, score, what in (
        (replace(config, rpn_proposals=proposals), dataset, 0.0, "rpn_proposals.max_proposa"),
        (config, arrays(8), 0.0, "pictures"),
        (config, dataset, 0.5, "min_score"),
        (with_data(config, eval_batch_size=1), dataset, 0.0, "batch size"),
    ):
        with pytest.raises(UserError, match=rf"unfinished results with {what}.* but now it is"):
            run(other, pictures, path, score)
    assert (tmp_path / "a.part.jsonl").read_bytes() == before
    # How bad pictures are treated does not change the results of the others.
    run(with_data(config, on_bad_picture="skip"), dataset, path)


def test_a_file_without_results_is_ignored(config, tmp_path, use_fake):
    path, part = tmp_path / "a.json", tmp_path / "a.part.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(config, arrays(9), path, function=StopsAfter(2))
    header, first, *_ = part.read_bytes().splitlines(keepends=True)
    for killed_at in (header[:9], header, header + first[:-1]):
        part.write_bytes(killed_at)
        run(config, arrays(7), path, min_score=0.5)
    assert not part.exists()
    part.write_bytes(header + first)
    with pytest.raises(UserError, match="holds unfinished results with"):
        run(config, arrays(7), path)


def test_a_file_in_use_is_refused(tmp_path):
    path = tmp_path / "a.part.jsonl"
    with (
        open_part_file(path, {}, [[0]], arrays(1)),
        pytest.raises(UserError, match="another command writes to it"),
        open_part_file(path, {}, [[0]], arrays(1)),
    ):
        pass


def different_files(folder, count):
    """Write pictures of one size. `fake_propose` finds other boxes in each."""
    files = [folder / f"{number}.png" for number in range(count)]
    for number, file in enumerate(files):
        assert cv2.imwrite(str(file), np.full((32, 32, 3), 10 + number, np.uint8))
    return files


@pytest.mark.parametrize("resize", ["host", "device"])
@pytest.mark.parametrize("bad", [(1,), (0, 1), (2, 3), (0, 4)])
def test_a_skipped_picture_changes_no_result_of_the_others(config, tmp_path, use_fake, bad, resize):
    files = different_files(tmp_path, 5)
    config = with_data(config, on_bad_picture="skip", resize=resize)
    run(config, PictureFiles(files), tmp_path / "all.json")
    every = json.loads((tmp_path / "all.json").read_text())
    assert len({tuple(result["bbox"]) for result in every if result["score"] == 1}) == 5

    dataset = PictureFiles(files)
    for position in bad:
        files[position].write_bytes(files[position].read_bytes()[:50])
    run(config, dataset, tmp_path / "good.json")
    expected = [result for result in every if result["image_id"] - 1 not in bad]
    assert json.loads((tmp_path / "good.json").read_text()) == expected


def annotated(files):
    """Return picture files as a dataset with annotations, of which the classes were renamed."""
    pictures = [Picture(number, file.name, 32, 32) for number, file in enumerate(files, start=1)]
    part = AnnotatedFiles(pictures, (), (), files[0].parent, "a.json")
    return View((part,), pictures, (), ())


@pytest.mark.parametrize("dataset_of", [PictureFiles, annotated])
def test_only_a_finished_picture_must_not_change(config, tmp_path, use_fake, dataset_of):
    files = different_files(tmp_path, 6)
    path = tmp_path / "a.json"
    with pytest.raises(KeyboardInterrupt):
        run(config, dataset_of(files), path, function=StopsAfter(2))
    time = files[0].stat().st_mtime_ns
    os.utime(files[0], ns=(time, time + 1))
    with pytest.raises(UserError, match=r"a\.part\.jsonl: holds .* of [^ ]*0\.png, but this pic"):
        run(config, dataset_of(files), path)
    os.utime(files[0], ns=(time, time))
    # For example a broken picture at which the command stopped, and that was repaired.
    os.utime(files[5], ns=(time, time + 1))
    left = StopsAfter(100)
    run(config, dataset_of(files), path, function=left)
    assert left.left == 98


def test_skipped_pictures_are_remembered(config, tmp_path, use_fake, capsys):
    files = different_files(tmp_path, 6)
    dataset = PictureFiles(files)
    files[1].write_bytes(files[1].read_bytes()[:50])
    config = with_data(config, on_bad_picture="skip", max_bad_pictures=1)
    path = tmp_path / "a.json"
    with pytest.raises(KeyboardInterrupt):
        run(config, dataset, path, function=StopsAfter(2))
    assert "stopped after 2 of 6 pictures" in capsys.readouterr().out
    shutil.copy(tmp_path / "a.part.jsonl", tmp_path / "b.part.jsonl")
    run(config, dataset, path)
    assert {result["image_id"] for result in json.loads(path.read_text())} == {1, 3, 4, 5, 6}
    # One more bad picture is one too many, also when the first one was found before.
    time = files[5].stat().st_mtime_ns
    files[5].write_bytes(bytes(files[5].stat().st_size))
    os.utime(files[5], ns=(time, time))
    with pytest.raises(UserError, match="More than data.max_bad_pictures = 1"):
        run(config, dataset, tmp_path / "b.json")


def test_a_killed_command_continues_to_the_same_bytes(tiny_config, tmp_path, capsys):
    save_config(tiny_config, tmp_path / "tiny.json")
    save_variables(tmp_path / "weights", tiny_config, init_variables(tiny_config, seed=0))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(7):
        image = rng.integers(0, 255, (50 + number, 64, 3), np.uint8)
        assert cv2.imwrite(str(pictures / f"{number}.png"), image)
    inputs = [str(tmp_path / "tiny.json"), str(tmp_path / "weights"), str(pictures)]
    program = [sys.executable, "-m", "tests.inference.killed_program"]
    done = subprocess.run([*program, *inputs, str(tmp_path / "killed")], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert [file.name for file in (tmp_path / "killed").iterdir()] == ["proposals.part.jsonl"]
    for name in ("whole", "killed"):
        out = tmp_path / name
        command.propose(tiny_config, inputs[1], [str(pictures)], out, 0, 0.0, exact_padding=False)
    assert re.search("continuing after 4 of 7 pictures", capsys.readouterr().out)
    for file in ("proposals.json", "pictures.json"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert len(list((tmp_path / "killed").iterdir())) == 2
