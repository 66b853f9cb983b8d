"""The verbs end to end on small pictures: train, resume, evaluate, propose, convert."""

import errno
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import cv2
import jax
import numpy as np
import pytest
from pycocotools.coco import COCO

import rpn_jax
from rpn_jax import cli, commands
from rpn_jax import console as progress
from rpn_jax.config import load_config, save_config
from rpn_jax.data.pipeline import train_batches
from rpn_jax.errors import UserError
from rpn_jax.inference import command
from rpn_jax.inference.results import PictureDetections, PictureProposals
from rpn_jax.training import run as train_run
from rpn_jax.training import tasks
from rpn_jax.training.lock import lock_workdir
from rpn_jax.training.log import RunLog
from rpn_jax.weights.checkpoints import Saved, last_saved


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def leaves_of(folder):
    return rpn_jax.load_variables(folder)


def assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def with_epochs(config, epochs):
    return replace(config, train=replace(config.train, epochs=epochs))


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    """(config, work directory) of two epochs."""
    workdir = tmp_path_factory.mktemp("run")
    commands.train(tiny_config, workdir, resume=False)
    return tiny_config, workdir


def test_training_writes_config_environment_metrics_and_checkpoints(run):
    config, workdir = run
    assert load_config(workdir / "config.json") == config
    (environment,) = json.loads((workdir / "environment.json").read_text())
    assert environment["first_step"] == 0
    assert environment["packages"]["rpn_jax"] == rpn_jax.__version__
    assert environment["devices"]
    lines = lines_of(workdir / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(line["loss"]) for line in steps)
    assert steps[0]["learning_rate"] == pytest.approx(0.01 * 0.001)
    assert steps[2]["learning_rate"] == pytest.approx(0.01)
    assert steps[3]["learning_rate"] == pytest.approx(0.001)
    evaluations = [line for line in lines if "AR@100" in line]
    assert [line["step"] for line in evaluations] == [3, 6]
    assert list(workdir.glob("events.out.tfevents.*"))
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["3", "6"]


def test_auto_prints_its_choices_and_saves_the_config_that_it_trained(run, tmp_path, capsys):
    config, _ = run
    kept = with_epochs(config, 1)
    given = ("data.scale", "train.epochs", "optim.decay_epochs", "optim.warmup_steps")
    commands.train(kept, tmp_path, resume=False, given=(*given, "train.eval_every"))
    said = capsys.readouterr().out
    assert "auto: optim.auto_scale_lr = True: 0.01 is for 16 pictures a step. 2 pictures" in said
    assert said.count("auto: ") == 1
    optim = replace(kept.optim, auto_scale_lr=True)
    assert load_config(tmp_path / "config.json") == replace(kept, optim=optim)


def test_every_figure_of_the_task_is_in_the_metrics(run):
    config, workdir = run
    task = tasks.rpn_task(config)
    names = {name for line in lines_of(workdir / "metrics.jsonl") for name in line}
    assert {task.best_by, *itertools.chain(*task.curves.values())} <= names


def test_a_resumed_run_ends_with_the_same_bits(run, tmp_path):
    config, workdir = run
    # One epoch of the same schedule, then the rest.
    commands.train(with_epochs(config, 1), tmp_path, resume=False)
    commands.train(config, tmp_path, resume=True)
    assert_same(leaves_of(workdir / "checkpoints" / "6"), leaves_of(tmp_path / "checkpoints" / "6"))
    once, twice = (lines_of(folder / "metrics.jsonl") for folder in (workdir, tmp_path))
    for one, two in zip(once, twice, strict=True):
        for measured in ("pictures_per_second", "input_wait"):
            one.pop(measured, None)
            two.pop(measured, None)
        assert one == two


def test_an_interrupted_run_resumes_in_the_middle_of_an_epoch(run, tmp_path, monkeypatch):
    config, workdir = run
    log_step = RunLog.step

    def interrupt_at_the_second_step(log, step, metrics):
        log_step(log, step, metrics)
        if step == 0:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "step", interrupt_at_the_second_step)
        with pytest.raises(KeyboardInterrupt):
            commands.train(config, tmp_path, resume=False)
    saved = [int(p.name) for p in (tmp_path / "checkpoints").iterdir()]
    assert len(saved) == 1
    assert saved[0] % 3 != 0
    commands.train(config, tmp_path, resume=True)
    assert_same(leaves_of(workdir / "checkpoints" / "6"), leaves_of(tmp_path / "checkpoints" / "6"))


def test_a_run_killed_in_mid_epoch_ends_with_the_same_bits(run, tmp_path):
    config, workdir = run
    often = replace(config, train=replace(config.train, save_every_steps=1))
    save_config(often, tmp_path / "often.json")
    words = ["train", str(tmp_path / "often.json"), "--workdir", str(tmp_path / "w")]
    program = "import sys; from rpn_jax.cli import main; sys.exit(main())"
    deadline = time.monotonic() + 120
    with subprocess.Popen(
        [sys.executable, "-c", program, *words],
        cwd=Path(rpn_jax.__file__).parents[1],
        stdout=subprocess.DEVNULL,
    ) as process:
        while not list((tmp_path / "w").glob("checkpoints/[245]")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
    assert last_saved(tmp_path / "w").step in (2, 4, 5, 6)
    commands.train(often, tmp_path / "w", resume=True)
    assert_same(
        leaves_of(workdir / "checkpoints" / "6"), leaves_of(tmp_path / "w" / "checkpoints" / "6")
    )


def test_a_damaged_last_checkpoint_is_reported_and_the_one_before_it_is_used(
    run, tmp_path, monkeypatch, capsys
):
    config, workdir = run
    shutil.copytree(workdir, tmp_path / "w")
    newest = tmp_path / "w" / "checkpoints" / "6"
    for file in (newest / "optimizer").rglob("d/*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    commands.train(config, tmp_path / "w", resume=True)
    said = capsys.readouterr().out
    moved = tmp_path / "w" / "damaged" / "6_0"
    assert f"warning: checkpoint {newest}/optimizer: is damaged" in said
    assert f"It was moved to {moved}. Training continues from the checkpoint of step 3." in said
    assert "continuing after step 3, which was saved" in said
    assert moved.is_dir()
    assert_same(leaves_of(workdir / "checkpoints" / "6"), leaves_of(newest))


def test_a_run_that_fails_says_how_old_the_last_save_is(run, tmp_path, monkeypatch, capsys):
    config, _ = run
    often = replace(config, train=replace(config.train, save_every_steps=2))

    log_step = RunLog.step

    def fail_at_the_third_step(log, step, metrics):
        log_step(log, step, metrics)
        if step == 2:
            raise RuntimeError("no more")

    monkeypatch.setattr(RunLog, "step", fail_at_the_third_step)
    with pytest.raises(RuntimeError, match="no more"):
        commands.train(often, tmp_path, resume=False)
    said = capsys.readouterr().out
    assert re.search(
        r"stopped after step 3 of 6\. The last checkpoint is of step 2, saved \d+ s ago\. "
        r"Use --resume to continue from there\.",
        said,
    )


def test_a_work_directory_with_a_run_is_not_overwritten(run):
    config, workdir = run
    with pytest.raises(UserError, match=r"contains a run up to step 6\. Add --resume"):
        commands.train(config, workdir, resume=False)


def test_damaged_metrics_are_reported_before_a_run_is_resumed(run, tmp_path):
    config, workdir = run
    shutil.copytree(workdir, tmp_path / "w")
    path = tmp_path / "w" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "gibberish\n", *lines[2:]]))
    with pytest.raises(UserError, match=rf"^metrics {path}: line 2: is not a JSON object"):
        commands.train(config, tmp_path / "w", resume=True)


def test_resuming_with_another_config_prints_the_changes(run, tmp_path, capsys):
    config, _ = run
    commands.train(with_epochs(config, 1), tmp_path, resume=False)
    capsys.readouterr()
    commands.train(config, tmp_path, resume=True)
    said = capsys.readouterr().out
    assert "train.epochs was 1 in this run until now. It is 2 from here on." in said
    assert "continuing after step 3, which was saved" in said
    commands.train(config, tmp_path, resume=True)
    assert "the run is finished after step 6, which was saved" in capsys.readouterr().out


def test_a_resumed_run_keeps_the_record_of_its_earlier_parts(run, tmp_path, monkeypatch):
    config, _ = run
    monkeypatch.setattr(sys, "argv", ["rpn-jax", "first"])
    commands.train(with_epochs(config, 1), tmp_path, resume=False)
    monkeypatch.setattr(sys, "argv", ["rpn-jax", "second"])
    commands.train(config, tmp_path, resume=True)
    first, second = json.loads((tmp_path / "environment.json").read_text())
    assert (first["command"], first["first_step"]) == (["rpn-jax", "first"], 0)
    assert (second["command"], second["first_step"]) == (["rpn-jax", "second"], 3)
    assert first["packages"] == second["packages"]
    # Version 0.1 stored one object instead of a list.
    (tmp_path / "environment.json").write_text(json.dumps(first))
    commands.train(config, tmp_path, resume=True)
    assert json.loads((tmp_path / "environment.json").read_text())[0] == first


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is not JSON"),
        ("3", "is not a list of environments"),
        ("[{}]", "is not a list"),
        ("[3]", "is not a list"),
    ],
)
def test_a_damaged_record_is_named_with_a_remedy(run, tmp_path, content, complaint):
    config, workdir = run
    shutil.copytree(workdir, tmp_path / "run")
    record = tmp_path / "run" / "environment.json"
    record.write_text(content)
    with pytest.raises(UserError, match=rf"environment\.json: {complaint}.* Move the file away\."):
        commands.train(config, tmp_path / "run", resume=True)
    record.unlink()
    commands.train(config, tmp_path / "run", resume=True)
    assert len(json.loads(record.read_text())) == 1


def test_a_resumed_run_does_not_need_its_initial_weights(run, tmp_path):
    config, workdir = run
    shutil.copytree(workdir, tmp_path / "weights")
    train = replace(config.train, epochs=1, eval_every=0, init_weights=str(tmp_path / "weights"))
    commands.train(replace(config, train=train), tmp_path / "w", False)
    shutil.rmtree(tmp_path / "weights")
    longer = replace(config, train=replace(train, epochs=2))
    commands.train(longer, tmp_path / "w", resume=True)
    assert (tmp_path / "w" / "checkpoints" / "6").is_dir()


def test_a_failed_evaluation_loses_no_epoch_and_is_repeated_on_resume(
    run, tmp_path, monkeypatch, capsys
):
    config, workdir = run

    def fail(annotations, results):
        raise UserError("no recall today")

    first = with_epochs(config, 1)
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "evaluate_recall", fail)
        with pytest.raises(UserError, match="no recall today"):
            commands.train(first, tmp_path, resume=False)
    assert last_saved(tmp_path) == Saved(3, epoch_steps=3, evaluated=False)
    capsys.readouterr()
    commands.train(first, tmp_path, resume=True)
    assert "Average recall" in capsys.readouterr().out
    assert last_saved(tmp_path) == Saved(3, epoch_steps=3, evaluated=True)
    whole, made_up = (lines_of(folder / "metrics.jsonl") for folder in (workdir, tmp_path))
    assert made_up[-1] == whole[3]
    assert len(made_up) == 4
    commands.train(first, tmp_path, resume=True)
    assert len(lines_of(tmp_path / "metrics.jsonl")) == 4, "it is repeated only once"


@pytest.mark.parametrize("error", [UserError("a.jpg: is broken"), OSError(errno.EIO, "cable")])
def test_a_batch_that_cannot_be_loaded_loses_no_finished_step(
    run, tmp_path, monkeypatch, capsys, error
):
    config, workdir = run

    def break_off(*arguments):
        yield from itertools.islice(train_batches(*arguments), 5)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(train_run, "train_batches", break_off)
        with pytest.raises(type(error)) as raised:
            commands.train(config, tmp_path, resume=False)
    assert raised.value is error
    assert (
        "stopped after step 4 of 6. The last checkpoint is of step 4, saved"
        in capsys.readouterr().out
    )
    assert last_saved(tmp_path) == Saved(4, epoch_steps=3, evaluated=False)
    commands.train(config, tmp_path, resume=True)
    assert_same(leaves_of(workdir / "checkpoints" / "6"), leaves_of(tmp_path / "checkpoints" / "6"))


def test_a_loss_that_is_not_finite_is_not_saved(run, tmp_path):
    config, _ = run
    diverging = replace(config, optim=replace(config.optim, learning_rate=1e30, warmup_steps=0))
    cause = r"^step \d: .* pictures \d+\.png, .* optim\.clip_norm\."
    remedy = r"'rpn-jax replay .*step_\d+\.npz' runs this step again\.$"
    with pytest.raises(UserError, match=f"{cause} {remedy}"):
        commands.train(diverging, tmp_path, resume=False)
    assert last_saved(tmp_path) is None


def test_a_run_whose_batches_are_taken_in_parts_has_the_same_losses(run, tmp_path):
    config, workdir = run
    train = replace(config.train, gradient_parts=2, eval_every=0)
    commands.train(replace(config, train=train), tmp_path, resume=False)
    expected, losses = (
        [line["loss"] for line in lines_of(folder / "metrics.jsonl") if "loss" in line]
        for folder in (workdir, tmp_path)
    )
    assert len(expected) == 6
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


@pytest.mark.parametrize(("key", "value"), [("frozen_stages", 1), ("train_norm", False)])
def test_a_run_continues_to_train_the_same_parameters(run, key, value):
    config, workdir = run
    backbone = replace(config.model.backbone, **{key: value})
    changed = with_epochs(replace(config, model=replace(config.model, backbone=backbone)), 3)
    stored = getattr(config.model.backbone, key)
    with pytest.raises(UserError) as refusal:
        commands.train(changed, workdir, resume=True)
    assert str(refusal.value) == (
        f"model.backbone.{key} = {value}: is {stored} in the run in {workdir}. A run cannot train "
        "other parameters later. Start a new run from its weights: choose another --workdir and "
        f"add --train.init-weights {workdir}"
    )


def test_a_run_keeps_the_record_of_its_initial_weights(run, tmp_path, capsys):
    config, workdir = run
    config = with_epochs(config, 1)
    started = replace(config, train=replace(config.train, init_weights=str(workdir)))
    commands.train(started, tmp_path, resume=False)
    for given, says in (("", False), (str(workdir), False), ("nowhere", True)):
        again = replace(config, train=replace(config.train, init_weights=given))
        capsys.readouterr()
        commands.train(again, tmp_path, resume=True)
        said = " ".join(capsys.readouterr().out.split())
        assert ("train.init_weights = 'nowhere' has no effect: the run has begun" in said) == says
        assert "until now" not in said
        assert load_config(tmp_path) == started


def test_a_run_can_be_resumed_with_another_clip_norm_and_scaling(run, tmp_path, capsys):
    config, _ = run
    commands.train(with_epochs(config, 1), tmp_path, resume=False)
    optim = replace(config.optim, clip_norm=5.0, auto_scale_lr=True)
    commands.train(replace(config, optim=optim), tmp_path, resume=True)
    said = capsys.readouterr().out
    assert "optim.clip_norm was 0.0 in this run until now. It is 5.0 from here on." in said
    assert "optim.auto_scale_lr was False in this run until now. It is True from here on." in said
    assert lines_of(tmp_path / "metrics.jsonl")[-2]["learning_rate"] == pytest.approx(0.001 / 8)
    assert last_saved(tmp_path) == Saved(6, epoch_steps=3, evaluated=True)


@pytest.mark.parametrize(
    ("section", "change", "complaint"),
    [
        ("data", {"batch_size": 1}, r"an epoch of its run has 3 steps, but 5 with data.batch_size"),
        ("train", {"epochs": 1}, r"train.epochs = 1: must be 2 or more, because"),
    ],
)
def test_resuming_with_other_epochs_is_refused(run, section, change, complaint):
    config, workdir = run
    files = [workdir / name for name in ("config.json", "metrics.jsonl")]
    before = [path.read_bytes() for path in files]
    other = replace(config, **{section: replace(getattr(config, section), **change)})
    with pytest.raises(UserError, match=complaint):
        commands.train(other, workdir, resume=True)
    assert [path.read_bytes() for path in files] == before


def test_a_second_run_in_a_work_directory_is_refused(run, tmp_path):
    config, _ = run
    with (
        lock_workdir(tmp_path),
        pytest.raises(UserError, match="another run is training in it"),
    ):
        commands.train(config, tmp_path, resume=False)
    assert not (tmp_path / "config.json").exists()


def test_resuming_without_a_checkpoint_starts_a_run(run, tmp_path, capsys):
    commands.train(with_epochs(run[0], 1), tmp_path / "w", resume=True)
    assert (
        f"{tmp_path / 'w'}: has no checkpoint. Training starts at step 1."
        in capsys.readouterr().out
    )


def test_the_demo_refuses_a_run_but_not_an_empty_folder(run, tmp_path, monkeypatch):
    _, workdir = run
    with pytest.raises(UserError, match="already contains a run"):
        commands.demo(workdir, detector=False)

    def begin(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "train", begin)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(KeyboardInterrupt):
        commands.demo(tmp_path, detector=True)


def test_frozen_random_weights_cause_a_note(run, tmp_path, capsys):
    config, _ = run
    backbone = replace(config.model.backbone, frozen_stages=0)
    frozen = replace(
        config,
        model=replace(config.model, backbone=backbone),
        train=replace(config.train, epochs=1, eval_every=0),
    )
    commands.train(frozen, tmp_path, resume=False)
    # No zoo has this network with group norm.
    assert "Use --train.init-weights with a file to start from a trained" in capsys.readouterr().out


def test_training_starts_from_given_weights(run, tmp_path):
    config, workdir = run
    start = replace(
        with_epochs(config, 1),
        train=replace(config.train, epochs=1, init_weights=str(workdir), eval_every=0),
        optim=replace(config.optim, learning_rate=1e-12, weight_decay=0.0),
    )
    commands.train(start, tmp_path, resume=False)
    kernels = [
        leaves_of(folder)["params"]["rpn_head"]["rpn_cls"]["kernel"]
        for folder in (workdir, tmp_path)
    ]
    np.testing.assert_allclose(*kernels, atol=1e-8)


def test_weights_load_into_a_config_with_other_frozen_stages(run):
    config, workdir = run
    backbone = replace(config.model.backbone, frozen_stages=1)
    frozen = replace(config, model=replace(config.model, backbone=backbone))
    assert commands.evaluate(frozen, workdir, None, False) == commands.evaluate(
        config, workdir, None, False
    )


def test_evaluate_gives_the_figures_of_training(run, tmp_path):
    config, workdir = run
    out = tmp_path / "deep" / "recall.json"
    figures = commands.evaluate(config, workdir / "checkpoints" / "6", out, exact_padding=False)
    last = lines_of(workdir / "metrics.jsonl")[-1]
    for name, value in json.loads(out.read_text())["figures"].items():
        assert value == pytest.approx(last[name])
        assert np.isnan(figures[name]) if value is None else figures[name] == value


def test_evaluate_writes_the_results_of_the_figures(run, tmp_path, capsys):
    config, workdir = run
    commands.evaluate(config, workdir, tmp_path / "e", exact_padding=False)
    assert "note: --data.scale" not in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "e").iterdir())
    assert names == ["figures.json", "proposals.json"]
    command.propose(config, workdir, [], tmp_path / "p", 0, 0.0, exact_padding=False)
    written = (tmp_path / name / "proposals.json" for name in "ep")
    assert next(written).read_bytes() == next(written).read_bytes()


def test_the_results_of_a_detector_are_two_files(tmp_path):
    boxes, scores = np.float32([[1, 2, 5, 9]]), np.float32([0.5])
    pair = (
        PictureDetections(7, boxes, scores, np.int32([1])),
        PictureProposals(7, boxes, scores),
    )
    dataset = Mock(category_ids=(3, 90))
    commands._write_results(tmp_path, [pair], dataset)
    categories = [
        json.loads((tmp_path / f"{name}.json").read_text())[0]["category_id"]
        for name in ("detections", "proposals")
    ]
    assert categories == [90, 1]


def test_evaluating_at_another_scale_prints_a_note(run, capsys):
    config, workdir = run
    other = replace(config, data=replace(config.data, scale=(64, 32), buckets=((64, 64),)))
    commands.evaluate(other, workdir, None, exact_padding=False)
    note = "note: --data.scale 64 32: the training used 64 64. The figures can be lower."
    assert note in capsys.readouterr().out


def test_the_demo_draws_a_picture_after_the_first_evaluation(run, tmp_path, monkeypatch, capsys):
    config, _ = run
    monkeypatch.setattr(commands, "load_config", lambda name: config)
    monkeypatch.setattr(commands, "draw_curves", lambda *arguments: None)
    commands.demo(tmp_path, detector=False)
    lines = capsys.readouterr().out.splitlines()
    first_evaluation = next(i for i, line in enumerate(lines) if line.startswith("epoch 1: "))
    [drawn] = [i for i, line in enumerate(lines) if line.startswith("the picture with its 12 best")]
    assert first_evaluation < drawn < next(i for i, line in enumerate(lines) if "step 4/6" in line)
    path = Path(lines[drawn].rpartition(" is ")[2])
    assert path.parent == tmp_path / "pictures"
    assert cv2.imread(str(path)) is not None


def test_propose_writes_boxes_in_original_pixels_and_pictures(run, tmp_path):
    config, workdir = run
    command.propose(
        config, workdir, [config.data.root + "/test"], tmp_path, 5, 0.0, exact_padding=False
    )
    pictures = {p["id"]: p for p in json.loads((tmp_path / "pictures.json").read_text())["images"]}
    results = json.loads((tmp_path / "proposals.json").read_text())
    assert len(COCO(tmp_path / "pictures.json").loadRes(results).anns) == len(results)
    assert len(pictures) == 3
    assert {result["image_id"] for result in results} == set(pictures)
    for result in results:
        x, y, width, height = result["bbox"]
        picture = pictures[result["image_id"]]
        assert x >= 0
        assert y >= 0
        assert x + width <= picture["width"] + 1e-3
        assert y + height <= picture["height"] + 1e-3
        assert result["category_id"] == 1
    assert max(x + w for x, _, w, _ in (result["bbox"] for result in results)) > 64
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_a_picture_with_a_long_name_is_drawn(run, tmp_path):
    config, workdir = run
    path = sorted((Path(config.data.root) / "test").iterdir())[0]
    copy = tmp_path / f"{'ä' * 120}.png"
    shutil.copy(path, copy)
    command.propose(config, workdir, [str(copy)], tmp_path / "p", 3, 0.0, exact_padding=False)
    (drawn,) = (tmp_path / "p").glob("**/1_*.png")
    assert drawn.stem == f"1_{'ä' * 100}"


def test_a_truncated_picture_leaves_no_proposals(run, tmp_path):
    config, workdir = run
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    shutil.copytree(config.data.root + "/test", pictures)
    whole = cv2.imencode(".jpg", np.arange(48000, dtype=np.uint8).reshape(120, 400))[1]
    (pictures / "z.jpg").write_bytes(whole.tobytes()[: whole.size // 2])
    with pytest.raises(UserError, match=r"z\.jpg: is not a picture that OpenCV can read$"):
        command.propose(config, workdir, [str(pictures)], out, 0, 0.0, exact_padding=False)
    assert list(out.iterdir()) == []


def test_a_log_shows_the_progress_of_proposing_and_drawing(run, tmp_path, monkeypatch, capsys):
    config, workdir = run
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    pictures = [config.data.root + "/test"]
    command.propose(config, workdir, pictures, tmp_path, 5, 0.0, exact_padding=False)
    said = capsys.readouterr().out
    for doing, done in (("proposing", 2), ("proposing", 3), ("drawing", 1), ("drawing", 3)):
        assert f"{doing} {done}/3 pictures" in said


def test_exact_padding_makes_a_picture_independent_of_the_buckets(run, tmp_path):
    config, workdir = run
    wide = replace(config, data=replace(config.data, buckets=((128, 128),)))
    source = [config.data.root + "/test"]
    results = {}
    for name, used, exact in (("64", config, False), ("128", wide, False), ("exact", wide, True)):
        command.propose(used, workdir, source, tmp_path / name, 0, 0.0, exact_padding=exact)
        results[name] = json.loads((tmp_path / name / "proposals.json").read_text())
    assert results["exact"] == results["64"]
    assert results["exact"] != results["128"]


def test_proposer_takes_files_and_arrays_in_any_order(run):
    config, workdir = run
    proposer = rpn_jax.Proposer(config, rpn_jax.load_variables(workdir))
    path = sorted((Path(config.data.root) / "test").iterdir())[0]
    array = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    tall = np.ascontiguousarray(array.transpose(1, 0, 2))
    results = proposer([tall, str(path), array, path])
    np.testing.assert_array_equal(results[1].boxes_xyxy, results[2].boxes_xyxy)
    np.testing.assert_array_equal(results[1].scores, results[3].scores)
    assert results[0].boxes_xyxy[:, 3].max() <= tall.shape[0]
    assert len(results[0].scores) > 0
    assert np.all(np.diff(results[0].scores) <= 0)
    assert proposer([]) == []


def test_proposer_refuses_a_picture_that_is_not_in_a_list(run):
    config, workdir = run
    proposer = rpn_jax.Proposer(config, rpn_jax.load_variables(workdir))
    array = np.zeros((8, 8, 3), np.uint8)
    for one in ("a.jpg", Path("a.jpg"), array, jax.numpy.asarray(array)):
        with pytest.raises(UserError, match=r"^pictures: is of type \w+; give a list: \[picture\]"):
            proposer(one)


def test_weights_go_to_torch_and_back_bit_for_bit(run, tmp_path):
    _, workdir = run
    file, out = tmp_path / "weights.pth", tmp_path / "back"
    assert cli.main(["convert", str(workdir), "--to-torch", str(file)]) == 0
    assert cli.main(["convert", str(file), str(out), "--config", str(workdir / "config.json")]) == 0
    assert_same(leaves_of(out), leaves_of(workdir))
