"""The command line: verbs, overrides, help. Bad input gives one line and exit code 2."""

from __future__ import annotations

import ast
import os
import pty
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock, create_autospec

import jax
import pytest

from rpn_jax import __version__, commands
from rpn_jax.benchmark import command as benchmark_command
from rpn_jax.benchmark.options import Options
from rpn_jax.cli import _flags_of, main, parse
from rpn_jax.config import Config, config_fields, config_names, load_config, save_config
from rpn_jax.errors import UserError
from rpn_jax.inference import command as inference_command
from rpn_jax.suggestions import ADVICE, FLAGS_OF_OTHER_TOOLS
from rpn_jax.verbs import VERBS, Train

ROOT = Path(__file__).resolve().parents[1]
R50 = "rpn_r50_fpn_1x_coco"
FASTER = "faster-rcnn_r50_fpn_1x_coco"
TRAIN = ["train", R50, "--workdir", "runs/r50"]
PROPOSE = ["propose", R50, "--weights", "w", "--out", "p"]


@pytest.fixture(autouse=True)
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, Mock]:
    """The functions behind the verbs, replaced by mocks of the same signature."""
    verbs = [*(verb.replace("-", "_") for verb in VERBS), "convert_to_torch"]
    homes = {verb: (commands, verb) for verb in verbs} | {
        "benchmark": (benchmark_command, "run"),
        "propose": (inference_command, "propose"),
        "detect": (inference_command, "detect"),
    }
    mocks = {verb: create_autospec(getattr(*home)) for verb, home in homes.items()}
    for verb, mock in mocks.items():
        monkeypatch.setattr(*homes[verb], mock)
    return mocks


def run_python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)


def test_train_passes_the_config_with_its_overrides(work: dict[str, Mock]) -> None:
    flags = (
        "--data.root data/mine --optim.learning-rate 0.01 --data.scale 640 480 "
        "--data.buckets 480 640 640 480 --model.backbone.no-train-norm --data.clip-boxes "
        "--optim.decay-epochs 3 4 5 --model.backbone.frozen-stages -1 --resume "
        "--optim.auto-scale-lr"
    )
    assert main([*TRAIN, *flags.split()]) == 0
    base = load_config(R50)
    expected = replace(
        base,
        model=replace(
            base.model, backbone=replace(base.model.backbone, train_norm=False, frozen_stages=-1)
        ),
        data=replace(
            base.data,
            root="data/mine",
            scale=(640, 480),
            buckets=((480, 640), (640, 480)),
            clip_boxes=True,
        ),
        optim=replace(base.optim, learning_rate=0.01, decay_epochs=(3, 4, 5), auto_scale_lr=True),
    )
    work["train"].assert_called_once_with(expected, Path("runs/r50"), True, None, trackers=())


@pytest.mark.parametrize("flag", ["--auto-scale-lr", "--optim.auto-scale-lr"])
def test_scaling_the_learning_rate_is_part_of_the_config(work: dict[str, Mock], flag: str) -> None:
    assert main([*TRAIN, flag]) == 0
    config, *_ = work["train"].call_args.args
    assert config == replace(config, optim=replace(load_config(R50).optim, auto_scale_lr=True))


def test_train_without_overrides_is_the_config_itself(work: dict[str, Mock]) -> None:
    assert main(TRAIN) == 0
    run = load_config(R50), Path("runs/r50"), False, None
    work["train"].assert_called_once_with(*run, trackers=())


def test_trackers_are_off_until_their_flags_are_given(work: dict[str, Mock]) -> None:
    assert main([*TRAIN, "--mlflow", "--wandb"]) == 0
    assert work["train"].call_args.kwargs == {"trackers": ("wandb", "mlflow")}


def test_evaluate_passes_weights_and_out(work: dict[str, Mock]) -> None:
    assert main(["evaluate", R50, "--weights", "w", "--out", "recall.json"]) == 0
    assert main(["evaluate", R50, "--weights", "w", "--data.eval-split", "test"]) == 0
    first, second = work["evaluate"].call_args_list
    assert first.args == (load_config(R50), "w", Path("recall.json"), False)
    assert second.args[0].data.eval_split == "test"
    assert second.args[2] is None


@pytest.mark.parametrize(
    "words", ["{} --weights w --out p --draw 5", "--weights w {} --out p --draw 5"]
)
def test_propose_passes_pictures_in_order(words: str, work: dict[str, Mock]) -> None:
    assert main(["propose", R50, *words.format("a.jpg folder/ b*.png").split()]) == 0
    work["propose"].assert_called_once_with(
        load_config(R50), "w", ["a.jpg", "folder/", "b*.png"], Path("p"), 5, 0.0, False
    )


def test_detect_passes_the_limits_as_part_of_the_config(work: dict[str, Mock]) -> None:
    words = ["detect", FASTER, "--weights", "w", "--out", "p", "a.jpg", "--draw", "5"]
    for flag in ("--score", "--min-score"):
        assert main([*words, flag, "0.5", "--max", "20"]) == 0
    assert main(words) == 0
    base = load_config(FASTER)
    limits = replace(base.roi_detections, min_score=0.5, max_detections=20)
    limited = replace(base, roi_detections=limits)
    rest = ("w", ["a.jpg"], Path("p"), 5, False)
    assert [call.args for call in work["detect"].call_args_list] == [
        (limited, *rest),
        (limited, *rest),
        (base, *rest),
    ]


def test_propose_passes_its_limits(work: dict[str, Mock]) -> None:
    assert main([*PROPOSE, "a.jpg", "--min-score", "0.5", "--max", "20"]) == 0
    config, *rest = work["propose"].call_args.args
    assert config.rpn_proposals.max_proposals == 20
    assert rest == ["w", ["a.jpg"], Path("p"), 0, 0.5, False]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder with a config, as weights have it."""
    folder = tmp_path / "weights"
    folder.mkdir()
    save_config(replace(load_config(FASTER), name="mine"), folder / "config.json")
    return folder


@pytest.mark.parametrize("verb", ["evaluate", "propose", "detect"])
def test_without_a_config_that_of_the_weights_is_used(
    verb: str, weights: Path, work: dict[str, Mock]
) -> None:
    out = ["--out", "p"]
    pictures = [] if verb == "evaluate" else ["a.jpg", str(weights.parent)]
    assert main([verb, *pictures, "--weights", str(weights), *out, "--data.root", "x"]) == 0
    assert main([verb, str(weights), *pictures, f"--weights={weights}", *out]) == 0
    first, second = (call.args for call in work[verb].call_args_list)
    assert first[0] == replace(second[0], data=replace(second[0].data, root="x"))
    assert second[0].name == "mine"
    assert first[1] == second[1] == str(weights)
    if pictures:
        assert first[2] == second[2] == pictures


def test_the_last_of_several_weights_is_used(weights: Path, work: dict[str, Mock]) -> None:
    for first in (["--weights", "absent"], ["--weights=absent"]):
        assert main(["evaluate", *first, "--weights", str(weights)]) == 0
        assert work["evaluate"].call_args.args[1] == str(weights)


def test_a_config_can_be_a_work_directory_or_a_step_in_it(weights: Path) -> None:
    step = weights / "checkpoints" / "7"
    step.mkdir(parents=True)
    for folder in (weights, step):
        verb = parse(["train", str(folder), "--workdir", "w"])
        assert isinstance(verb, Train)
        assert verb.config.name == "mine"


def test_weights_of_another_tool_are_converted_first(
    weights: Path, work: dict[str, Mock], monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = Mock(return_value=weights)
    monkeypatch.setattr("rpn_jax.weights.models.weights_folder", convert)
    words = ["propose", "a.jpg", "--weights", "mmdetection://x", "--out", "p"]
    assert main([*words, "--rpn-proposals.nms-pre", "100"]) == 0
    convert.assert_called_once_with("mmdetection://x", config=None)
    config, folder, *_ = work["propose"].call_args.args
    assert (config.name, config.rpn_proposals.nms_pre, folder) == ("mine", 100, str(weights))
    assert main([*words, "--nms-pre", "100"]) == 2
    convert.assert_called_once()  # A wrong flag is found before the conversion.


def test_several_processes_need_a_config_or_a_folder(
    weights: Path,
    work: dict[str, Mock],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("rpn_jax.weights.models.weights_folder", Mock(return_value=weights))
    words = ["evaluate", "--weights", "mmdetection://x", "--process-count"]
    assert main([*words, "1"]) == 0
    assert main([*words, "2", "--coordinator", "localhost:1", "--process-id", "0"]) == 2
    assert "several processes need a CONFIG, or a folder" in capsys.readouterr().err


FOREIGN_FLAGS = [
    ("train", "--lr", "; use '--optim.learning-rate'"),
    ("train", "--optim.lr", "; use '--optim.learning-rate'"),
    ("train", "--data.img-size", "; use '--data.scale LONG SHORT'"),
    ("train", "--cfg-options", ": every field of the config is a flag"),
    ("train", "--imgsz", "; use '--data.scale LONG SHORT'"),
    ("detect", "--conf", "; use '--min-score'"),
    ("train", "--batch", "; use '--data.batch-size'"),
    ("train", "--epochs", "; use '--train.epochs'"),
    ("train", "--work-dir", "; use '--workdir'"),
    ("evaluate", "--data", "; use '--data.root'"),
    ("evaluate", "--ann-file", ": use --data.train-annotations FILE to train, --data.eval-"),
    ("train", "--annotations", ": use --data.train-annotations FILE to train, --data.eval-"),
    ("train", "--device", "; use '--platform'"),
    ("train", "--gpus", ": all GPUs are used."),
    ("train", "--learning-rate", "; did you mean '--optim.learning-rate'?"),
    ("train", "--lerning-rate", "; did you mean '--optim.learning-rate'?"),
    ("train", "--frobnicate", ""),
    ("demo", "--lr", ""),
]


@pytest.mark.parametrize(("verb", "flag", "hint"), FOREIGN_FLAGS)
def test_flags_of_other_tools_get_a_hint_and_strange_ones_none(
    verb: str, flag: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, *([] if verb == "demo" else [FASTER]), flag, "1"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: unknown flag '{flag}'{hint}")
    if not hint:
        assert message == f"error: unknown flag '{flag}'\n"


def test_every_hint_names_a_flag_that_exists() -> None:
    config = load_config(FASTER)
    verbs = [VERBS[name](config=config) for name in ("train", "evaluate", "propose", "detect")]
    known = {flag for verb in verbs for flag in _flags_of(verb)} | {"--precisions", "--size"}
    known |= {"--batch-sizes"}
    hints = {hint.partition(" ")[0] for row in FLAGS_OF_OTHER_TOOLS.values() for hint in row}
    assert hints <= known
    assert not known & (FLAGS_OF_OTHER_TOOLS.keys() | ADVICE.keys())


def test_convert_works_in_both_directions(work: dict[str, Mock]) -> None:
    assert main(["convert", "a.pth", "out", "--config", R50]) == 0
    assert main(["convert", "mmdetection://x", "out"]) == 0
    assert main(["convert", "weights", "--to-torch", "a.pth"]) == 0
    assert [call.args for call in work["convert"].call_args_list] == [
        ("a.pth", Path("out"), R50),
        ("mmdetection://x", Path("out"), None),
    ]
    work["convert_to_torch"].assert_called_once_with(Path("weights"), Path("a.pth"))


@pytest.mark.parametrize("words", ["convert a.pth", "convert a.pth out --to-torch b.pth"])
def test_convert_needs_exactly_one_output(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert "needs a folder OUT to write or --to-torch FILE.pth" in capsys.readouterr().err


def test_full_device_memory_is_reported_in_one_line(
    work: dict[str, Mock], capsys: pytest.CaptureFixture[str]
) -> None:
    work["train"].side_effect = RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nof 8 GB")
    assert main(TRAIN) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "data.batch-size" in message
    work["train"].side_effect = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        main(TRAIN)


def test_demo_needs_no_arguments(work: dict[str, Mock]) -> None:
    assert main(["demo"]) == 0
    assert main(["demo", "--workdir", "elsewhere"]) == 0
    assert main(["demo", "--detector"]) == 0
    assert [call.args for call in work["demo"].call_args_list] == [
        (Path("runs/demo"), False),
        (Path("elsewhere"), False),
        (Path("runs/demo_detector"), True),
    ]


def test_benchmark_passes_its_flags_on(work: dict[str, Mock]) -> None:
    words = [R50, "--train", "--batch-sizes", "1", "16", "--precisions", "bfloat16"]
    assert main(["benchmark", *words]) == 0
    (options,) = work["benchmark"].call_args.args
    expected = Options(R50, train=True, batch_sizes=(1, 16), precisions=("bfloat16",))
    assert vars(options) == vars(expected)


@pytest.mark.parametrize(
    "flag", [["--optim.learning_rate", "0.3"], ["--optim.learning-rate=0.3"]], ids=str
)
def test_flags_can_be_spelled_in_other_ways(flag: list[str]) -> None:
    verb = parse([*TRAIN, *flag])
    assert isinstance(verb, Train)
    assert verb.config.optim.learning_rate == 0.3


def test_the_config_can_be_a_file(tmp_path: Path) -> None:
    config = replace(load_config("rpn_demo"), name="mine")
    save_config(config, tmp_path / "config.json")
    verb = parse(["train", str(tmp_path / "config.json"), "--workdir", "w"])
    assert isinstance(verb, Train)
    assert verb.config == config


@pytest.mark.parametrize("name", config_names())
def test_the_command_in_each_config_file_is_valid(name: str, work: dict[str, Mock]) -> None:
    [config_file] = (ROOT / "configs").rglob(f"{name}.py")
    docstring = ast.get_docstring(ast.parse(config_file.read_text()))
    assert docstring is not None
    program, *words = shlex.split(docstring.splitlines()[-1])
    assert program == "rpn-jax"
    assert main(words) == 0
    if name == "rpn_demo":
        work["demo"].assert_called_once()
    else:
        assert work["train"].call_args.args[0].name == name


@pytest.mark.parametrize(
    "words", [["train"], ["train", FASTER], ["evaluate"], ["propose"], ["detect", FASTER]], ids=str
)
def test_help_explains_every_field(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([*words, "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    config = load_config(words[1]) if len(words) > 1 else Config()
    for key in set(config_fields(config)) - {"model.roi"}:
        flag = re.escape("--" + key.replace("_", "-"))
        explained = re.search(rf"^[│ ]*{flag}\b.*\n[│ ]*[A-Z']", text, re.MULTILINE)
        assert explained, f"{key} is not explained"


def test_help_shows_the_values_of_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    def value_of_depth(words: list[str]) -> str:
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        found = re.search(r"--model\.backbone\.depth.*\n.*default: (\d+)", capsys.readouterr().out)
        assert found
        return found[1]

    assert value_of_depth(["train"]) == "50"
    assert value_of_depth(["train", "rpn_r18_fpn_gn_small"]) == "18"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_the_verbs_and_configs(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([flag])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {verb} +[A-Z].*\.$", text, re.MULTILINE) for verb in VERBS)
    assert all(f"\n  {name}\n" in text for name in config_names())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"rpn-jax {__version__}\n"


BAD_INPUT = [
    ([], "no verb"),
    (["trian"], "unknown verb 'trian'; did you mean 'train'?"),
    (["train"], "train: CONFIG is missing. Put it first"),
    (["train", "--workdir", "w", R50], "train: CONFIG is missing. Put it first"),
    (["train", "rpn_r50_fpn_1x"], f"did you mean '{R50}'?"),
    (["train", "absent.py"], "absent.py: no such file"),
    (["train", R50], "--workdir"),
    (["train", R50, "--workdir"], "'--workdir'"),
    ([*TRAIN, "--no-resum"], "unknown flag '--no-resum'; did you mean '--resume'?"),
    (["train", R50, "--wrkdir", "w"], "unknown flag '--wrkdir'; did you mean '--workdir'?"),
    ([*TRAIN, "--learning-rate", "1"], "did you mean '--optim.learning-rate'?"),
    ([*TRAIN, "--optim.learning_rat=1"], "did you mean '--optim.learning-rate'?"),
    ([*TRAIN, "--optim.learning-rate", "fast"], "'fast' is not a number. Usage: --optim.learning"),
    ([*TRAIN, "--optim.learning-rate"], "'--optim.learning-rate'"),
    ([*TRAIN, "--optim.learning-rate", "nan"], "optim.learning_rate = nan: must be a finite"),
    ([*TRAIN, "--optim.momentum", "2"], "optim.momentum = 2.0: must be 0 to below 1"),
    ([*TRAIN, "--train.epochs", "1.5"], "'1.5' is not a whole number. Usage: --train.epochs INT"),
    ([*TRAIN, "--data.scale", "800"], "Expected 2 values"),
    ([*TRAIN, "--data.buckets", "800", "1344", "1344"], "--data.buckets [INT INT"),
    ([*TRAIN, "--model.backbone.depth", "51"], "('18', '34', '50', '101', '152')"),
    ([*TRAIN, "--data.clip-boxes", "True"], "True"),
    ([*TRAIN, "stray"], "stray"),
    ([*TRAIN, "--platform", "tpu"], "('auto', 'cpu', 'gpu')"),
    (["evaluate", R50], "--weights"),
    (["propose", R50], "--weights"),
    ([*PROPOSE, "--max", "0", "a.jpg"], "rpn_proposals.max_proposals = 0: must be 1 to 100000"),
    ([*PROPOSE, "--max", "1000000000"], "rpn_proposals.max_proposals = 1000000000: must be 1 to"),
    ([*PROPOSE, "--min-score", "nan"], "--min-score nan: must be 0 to below 1"),
    ([*PROPOSE, "--min-score", "-1"], "--min-score -1.0: must be 0 to below 1"),
    ([*PROPOSE, "--draw", "-1", "a.jpg"], "--draw -1: must be 0 or more"),
    (["detect", FASTER, "--out", "p"], "--weights"),
    (
        ["detect", FASTER, "--weights", "w", "--out", "p", "--score", "2"],
        "--min-score 2.0: must be 0 to below 1",
    ),
    (["train", "faster_rcnn.yaml"], "YAML configs of other tools cannot be read. Use a name"),
    (["propose", "a.jpg", "--out", "p"], "propose: --weights is missing. Give a folder of weights"),
    (["detect", "pictures/", "--out", "p", "--weights"], "detect: --weights is missing."),
    (["evaluate", "--out", "p"], "evaluate: --weights is missing."),
    (["evaluate"], "evaluate: --weights is missing."),
    (["propose", "a.jpg", "--wieghts", "w"], "did you mean '--weights'?"),
    (["evaluate", "--weights", "absent"], "weights absent: no such file or folder"),
    (["propose", "rpn_r50_fpn_1x", "--weights", "w", "--out", "p"], f"did you mean '{R50}'?"),
    (["propose", "absent.jpg", "--weights", "w", "--ot", "p"], "did you mean '--out'?"),
    (["demo", "stray"], "stray"),
    (["benchmark", R50, "--rnus", "3"], "unknown flag '--rnus'; did you mean '--runs'?"),
    (["benchmark", R50, "--runs", "many"], "many"),
]


@pytest.mark.parametrize("columns", ["40", "200"])
@pytest.mark.parametrize(("words", "wanted"), BAD_INPUT, ids=str)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str],
    wanted: str,
    columns: str,
    work: dict[str, Mock],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", printed.err)
    assert wanted in printed.err
    assert not re.search("[─│╭╰]", printed.err)
    assert not any(mock.called for mock in work.values())


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_bad_input_is_one_line_in_any_encoding_and_without_colours(encoding: str) -> None:
    terminal, stdout = pty.openpty()  # where stdout is a terminal, tyro colours its messages
    words = [sys.executable, "train.py", R50, "--workdir", "w", "--train.epochs", "x"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "TERM": "xterm"}
    done = subprocess.run(
        words, cwd=ROOT, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True
    )
    os.close(stdout)
    os.close(terminal)
    assert done.returncode == 2
    assert re.fullmatch(r"error: --train\.epochs: [^\n\x1b]*INT\n", done.stderr)


def test_a_user_error_from_the_work_is_one_line(
    work: dict[str, Mock], capsys: pytest.CaptureFixture[str]
) -> None:
    work["train"].side_effect = UserError("data.root 'nowhere': no such folder")
    assert main(TRAIN) == 2
    assert capsys.readouterr().err == "error: data.root 'nowhere': no such folder\n"


def test_an_interrupt_prints_one_line_and_gives_130(
    work: dict[str, Mock], capsys: pytest.CaptureFixture[str]
) -> None:
    work["train"].side_effect = KeyboardInterrupt
    assert main(TRAIN) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_keeps_its_traceback(work: dict[str, Mock]) -> None:
    work["train"].side_effect = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        main(TRAIN)


def test_platform_gpu_without_a_gpu_names_the_backend(
    monkeypatch: pytest.MonkeyPatch, work: dict[str, Mock], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert main(["demo", "--platform", "gpu"]) == 2
    assert capsys.readouterr().err.startswith("error: --platform gpu: JAX sees no GPU, only 'cpu'")
    work["demo"].assert_not_called()


def test_platform_gpu_with_a_gpu_runs_the_command(
    monkeypatch: pytest.MonkeyPatch, work: dict[str, Mock]
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert main(["demo", "--platform", "gpu"]) == 0
    work["demo"].assert_called_once()


def test_platform_cpu_is_passed_to_jax(work: dict[str, Mock]) -> None:
    before = jax.config.jax_platforms  # type: ignore[attr-defined]
    try:
        assert main(["demo", "--platform", "cpu"]) == 0
        assert jax.config.jax_platforms == "cpu"  # type: ignore[attr-defined]
    finally:
        jax.config.update("jax_platforms", before)


def test_a_failed_start_of_jax_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jax, "default_backend", Mock(side_effect=RuntimeError("no cuda\nmore")))
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "error: --platform auto: JAX does not start (no cuda)\n"


def test_help_imports_neither_jax_nor_the_commands() -> None:
    code = (
        "import sys\n"
        "from rpn_jax.cli import main\n"
        "try:\n"
        "    main(['train', '--help'])\n"
        "finally:\n"
        "    print(sorted({'jax', 'flax', 'rpn_jax.commands'} & set(sys.modules)))\n"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_commands_import_no_package_that_only_some_need() -> None:
    heavy = "{'matplotlib', 'tensorboardX', 'torch'}"
    done = run_python("-c", f"import sys, rpn_jax.commands; print({heavy} & set(sys.modules))")
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr


def test_train_py_is_the_verb() -> None:
    done = run_python("train.py", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: rpn-jax train CONFIG")


def test_help_into_a_closed_pipe_is_silent() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "train.py", "--help"]
    done = subprocess.run(words, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
